#!/bin/sh
# A broker: its number is that of its pod.
set -eu
{
  cat /etc/imageflow-kafka/server.properties
  echo "node.id=${HOSTNAME##*-}"
  host=$HOSTNAME.kafka-nodes.imageflow-storage.svc.cluster.local
  echo "advertised.listeners=CLIENT://$host:9092,INTERNAL://$host:9094"
} > /tmp/server.properties
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted --cluster-id "$CLUSTER_ID" --config /tmp/server.properties
exec /opt/kafka/bin/kafka-server-start.sh /tmp/server.properties

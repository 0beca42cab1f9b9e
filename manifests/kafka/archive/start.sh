#!/bin/sh
# A worker, which the others reach by the address of its pod.
set -eu
{
  cat /etc/imageflow-archive/worker.properties
  echo "bootstrap.servers=kafka:9092"
  echo "rest.advertised.host.name=$POD_IP"
  for prefix in "" producer. consumer. admin.; do
    echo "${prefix}security.protocol=SASL_PLAINTEXT"
    echo "${prefix}sasl.mechanism=SCRAM-SHA-512"
    echo "${prefix}sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username=\"imageflow-archive\" password=\"$ARCHIVE_PASSWORD\";"
  done
} > /tmp/worker.properties
exec /opt/kafka/bin/connect-distributed.sh /tmp/worker.properties

#!/bin/sh
# Users and what each may do. It may run again at any time: a changed password is set, rights are added once.
set -eu
brokers=kafka-0.kafka-nodes:9094,kafka-1.kafka-nodes:9094,kafka-2.kafka-nodes:9094
cat > /tmp/broker.properties <<END
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="broker" password="$BROKER_PASSWORD";
END

# From a file, for the words of a command can be seen by others.
user() {
  echo "SCRAM-SHA-512=iterations=8192,password=$2" > /tmp/user.properties
  /opt/kafka/bin/kafka-configs.sh --bootstrap-server "$brokers" --command-config /tmp/broker.properties \
    --alter --entity-type users --entity-name "$1" --add-config-file /tmp/user.properties
  rm /tmp/user.properties
}
allow() {
  name=$1
  shift
  /opt/kafka/bin/kafka-acls.sh --bootstrap-server "$brokers" --command-config /tmp/broker.properties \
    --add --allow-principal "User:$name" "$@" > /dev/null
}

user imageflow "$IMAGEFLOW_PASSWORD"
allow imageflow --resource-pattern-type prefixed --topic imageflow. \
  --operation Read --operation Write --operation Create --operation Describe --operation Delete \
  --operation DescribeConfigs --operation AlterConfigs --operation Alter
allow imageflow --resource-pattern-type prefixed --group imageflow \
  --operation Read --operation Describe --operation Delete
# No record goes before every group has read it that this user may look at: give it Describe on each group that shall be waited for.
allow imageflow --group connect-imageflow-archive --operation Describe
allow imageflow --resource-pattern-type prefixed --transactional-id imageflow --operation Write --operation Describe
# Not Describe: it would be told of all groups, also of those that it may not look at, and delete nothing because of them.
allow imageflow --cluster --operation IdempotentWrite

user minio "$MINIO_PASSWORD"
allow minio --topic imageflow.object-notifications --operation Write --operation Describe --operation Create

user imageflow-archive "$ARCHIVE_PASSWORD"
for topic in imageflow.events imageflow.runs imageflow.dead-letters; do
  allow imageflow-archive --topic "$topic" --operation Read --operation Describe
done
# Where the workers keep configuration, offsets and status; their groups, and that of the connector.
allow imageflow-archive --resource-pattern-type prefixed --topic imageflow-archive- \
  --operation Create --operation Read --operation Write --operation Describe --operation DescribeConfigs
allow imageflow-archive --group imageflow-archive --operation Read --operation Describe
allow imageflow-archive --group connect-imageflow-archive --operation Read --operation Describe
echo "users and their rights are set"

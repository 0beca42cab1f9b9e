//! Apache Kafka: three KRaft nodes on Java.

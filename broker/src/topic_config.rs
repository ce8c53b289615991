//! Topic configuration by Kafka's names.

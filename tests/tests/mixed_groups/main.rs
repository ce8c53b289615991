//! Groups whose members speak both protocols and come from two clients, against real processes: librdkafka with the classic protocol,
//! librdkafka with the consumer protocol, and our own client. Whatever happens to the brokers and to the membership, nothing is lost,
//! nothing is read twice, and no partition has two owners at any time.

mod member;
mod observer;
mod record;
mod rolling_restart;
mod scene;
mod upgrade;

//! Attributes: names and values as OTLP spells them.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value};

use crate::session::places::address;

/// A value on its way into an attribute.
pub(super) struct Field(Value);

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self(Value::StringValue(text.to_owned()))
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self(Value::StringValue(text))
    }
}

impl From<u64> for Field {
    fn from(number: u64) -> Self {
        Self(Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}

impl From<i32> for Field {
    fn from(number: i32) -> Self {
        Self(Value::IntValue(number.into()))
    }
}

impl From<f64> for Field {
    fn from(number: f64) -> Self {
        Self(Value::DoubleValue(number))
    }
}

impl From<bool> for Field {
    fn from(truth: bool) -> Self {
        Self(Value::BoolValue(truth))
    }
}

impl From<&[&str]> for Field {
    fn from(texts: &[&str]) -> Self {
        let values = texts.iter().map(|text| any(*text)).collect();
        Self(Value::ArrayValue(ArrayValue { values }))
    }
}

/// A value that stands alone.
pub(super) fn any(value: impl Into<Field>) -> AnyValue {
    AnyValue { value: Some(value.into().0) }
}

/// Attributes in the making.
#[derive(Debug, Default)]
pub(super) struct Attributes(pub(super) Vec<KeyValue>);

impl Attributes {
    /// Adds one.
    pub(super) fn put(&mut self, key: &str, value: impl Into<Field>) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() });
    }

    /// Adds one, if there is a value.
    pub(super) fn put_some(&mut self, key: &str, value: Option<impl Into<Field>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    /// Adds where a server listens, without what tells it from others on that address; `pid:N` where it does not.
    pub(super) fn put_server(&mut self, server: &str) {
        let address = address(server);
        let named = || address.rsplit_once(':').filter(|(host, _)| !["pid", "unix"].contains(host));
        match (address.parse::<SocketAddr>(), named()) {
            (Ok(address), _) => {
                self.put("server.address", address.ip().to_string());
                self.put("server.port", u64::from(address.port()));
            }
            (Err(_), Some((host, port))) if let Ok(port) = port.parse::<u16>() => {
                self.put("server.address", host);
                self.put("server.port", u64::from(port));
            }
            (Err(_), _) => self.put("server.address", address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_where_it_listens_whatever_tells_it_apart() {
        for (server, address, port) in [
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("0.0.0.0:8080#blue", "0.0.0.0", Some(8080)),
            ("[::1]:80#net-4026532301#2", "::1", Some(80)),
            ("gpu-1:8080", "gpu-1", Some(8080)),
            ("unix:/run/a.sock#2", "unix:/run/a.sock", None),
            ("pid:7", "pid:7", None),
        ] {
            let mut attributes = Attributes::default();
            attributes.put_server(server);
            let value = |key: &str| {
                let found = attributes.0.iter().find(|attribute| attribute.key == key)?;
                found.value.as_ref()?.value.clone()
            };
            assert_eq!(value("server.address"), Some(Value::StringValue(address.to_owned())), "{server}");
            assert_eq!(value("server.port"), port.map(Value::IntValue), "{server}");
        }
    }
}

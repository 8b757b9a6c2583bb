//! Methods of the descriptors, and the number of calls of each. Labels are taken from here only, so
//! a client cannot create series.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::MetricType,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

use crate::metrics::DurationHistogram;

/// Names of the codes, by number, as Prometheus users of gRPC know them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Method and its counts.
pub struct Method {
    path: Box<str>,
    service: Box<str>,
    name: Box<str>,
    is_stream: bool,
    codes: [AtomicU64; CODES.len()],
    handling: DurationHistogram,
}

impl Method {
    fn new(service: &str, name: &str, is_stream: bool) -> Self {
        Self {
            path: format!("/{service}/{name}").into(),
            service: service.into(),
            name: name.into(),
            is_stream,
            codes: Default::default(),
            handling: DurationHistogram::default(),
        }
    }

    /// Returns the path of its requests, `/package.Service/Method`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns true if its response is an endless stream.
    pub(super) const fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Counts a call that ended.
    pub(in crate::api) fn handled(&self, code: Code, took: Duration) {
        if let Some(code) = self.codes.get(code as usize) {
            code.fetch_add(1, Relaxed);
            self.handling.record(took);
        }
    }

    /// Returns the number of calls that ended with `code`.
    pub fn count(&self, code: Code) -> u64 {
        self.codes.get(code as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Methods of a server.
pub struct Methods {
    by_path: HashMap<Box<str>, Method>,
    /// Counts of every gRPC path that is no method.
    pub(super) unknown: Method,
}

impl Methods {
    /// Creates the methods of encoded descriptor sets, such as [`crate::proto::DESCRIPTORS`]. They
    /// live as long as the process, as its counts do, so that a call need not share ownership of
    /// them.
    ///
    /// # Errors
    /// A set that cannot be decoded.
    pub fn leaked(descriptor_sets: &[&[u8]]) -> Result<&'static Self, prost::DecodeError> {
        let mut by_path = HashMap::new();
        for set in descriptor_sets {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    let service_name = format!("{}.{}", file.package(), service.name());
                    let methods = service.method.iter().map(|method| {
                        Method::new(&service_name, method.name(), method.server_streaming())
                    });
                    by_path.extend(methods.map(|method| (method.path.clone(), method)));
                }
            }
        }
        Ok(Box::leak(Box::new(Self { by_path, unknown: Method::new("unknown", "unknown", false) })))
    }

    /// Returns the method of exactly this path.
    pub fn find(&self, path: &str) -> Option<&Method> {
        self.by_path.get(path)
    }

    /// Returns the collector of `jeton_grpc_server_handled_total` and
    /// `jeton_grpc_server_handling_seconds`, of methods that were called.
    pub fn collector(&'static self) -> Box<dyn Collector> {
        Box::new(Counts(self))
    }
}

/// Counts of all methods, as they are when they are collected.
struct Counts(&'static Methods);

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counts")
    }
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut methods: Vec<_> = self.0.by_path.values().chain([&self.0.unknown]).collect();
        methods.sort_unstable_by_key(|method| &method.path);
        let mut handled = encoder.encode_descriptor(
            "grpc_server_handled",
            "Calls that ended, by method and gRPC code.",
            None,
            MetricType::Counter,
        )?;
        for method in &methods {
            for (code, count) in CODES.iter().zip(&method.codes) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let [service, name] = method.labels();
                    let labels = [service, name, ("grpc_code", *code)];
                    let mut series = handled.encode_family(&labels)?;
                    series.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
                }
            }
        }
        let mut handling = encoder.encode_descriptor(
            "grpc_server_handling_seconds",
            "Time from the headers of the request to the end of the response.",
            None,
            MetricType::Histogram,
        )?;
        for method in methods {
            if !method.handling.is_empty() {
                let labels = method.labels();
                method.handling.encode(handling.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Method {
    fn labels(&self) -> [(&str, &str); 2] {
        [("grpc_service", &self.service), ("grpc_method", &self.name)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_come_from_the_contract_and_nowhere_else() {
        let methods =
            Methods::leaked(&[crate::proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET])
                .unwrap();
        assert!(methods.find("/jeton.token.v1.TokenService/Introspect").is_some());
        assert!(!methods.find("/grpc.health.v1.Health/Check").unwrap().is_stream());
        assert!(methods.find("/grpc.health.v1.Health/Watch").unwrap().is_stream());
        for other in [
            "jeton.token.v1.TokenService/Introspect",
            "/jeton.token.v1.TokenService/introspect",
            "/",
            "",
        ] {
            assert!(methods.find(other).is_none(), "{other}");
        }
    }
}

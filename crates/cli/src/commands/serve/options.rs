//! What the command line of `rbd serve` asks for, checked before anything is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use ferry_nbd::{OnNoSpace, ServerConfig, TlsServer};

use super::exports::Scope;
use crate::exit::Failure;
use crate::grammar::Args;
use crate::spec::{ImageSpec, PoolSpec};

/// See the module's text.
#[derive(Debug)]
pub(super) struct ServeOptions {
    pub(super) images: Vec<ImageSpec>,
    /// Where names without a pool are looked up.
    pub(super) place: PoolSpec,
    pub(super) scope: Scope,
    pub(super) sockets: Vec<PathBuf>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) tls: Option<TlsServer>,
    pub(super) read_only: bool,
    pub(super) metrics: Option<SocketAddr>,
}

impl ServeOptions {
    /// The options of `serve`, which are the last arguments that anybody looks at.
    ///
    /// # Errors
    /// Exit 22 for what is no address, or contradicts itself; exit 1 for left-over arguments.
    pub(super) fn new(args: &Args) -> Result<Self, Failure> {
        let images = args.remaining_images()?;
        args.finish()?;
        let given = |option| args.text(option).filter(|text| !text.is_empty());
        let (pool, namespace) = (given("pool"), given("namespace"));
        let place = PoolSpec {
            pool: pool.unwrap_or(args.default_pool()).to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
        };
        let scope = if pool.is_none() && namespace.is_none() {
            Scope::Store
        } else {
            Scope::Pool {
                pool: place.pool.clone(),
                namespace: namespace.map(str::to_owned),
            }
        };
        let verify_peer = args.flag("tls-verify-peer");
        let certificates = given("tls-certificates");
        if verify_peer && certificates.is_none() {
            return Err(Failure::invalid(
                "--tls-verify-peer needs --tls-certificates, the directory with ca-cert.pem",
            ));
        }
        let mut options = Self {
            images,
            place,
            scope,
            sockets: args.texts("socket").map(PathBuf::from).collect(),
            addresses: args
                .texts("listen")
                .map(|text| address("listen", text, "127.0.0.1:10809"))
                .collect::<Result<_, _>>()?,
            tls: None,
            read_only: args.flag("read-only"),
            metrics: given("metrics").map(metrics_address).transpose()?,
        };
        if !verify_peer && !args.flag("allow-anyone") {
            options.refuse_strangers()?;
        }
        options.tls = certificates
            .map(|directory| TlsServer::from_directory(directory, verify_peer))
            .transpose()
            .map_err(|error| Failure::invalid(format_args!("--tls-certificates: {error}")))?;
        Ok(options)
    }

    /// Who is not verified must not reach the server from another machine.
    fn refuse_strangers(&self) -> Result<(), Failure> {
        let remote = self.addresses.iter().find(|address| !address.ip().is_loopback());
        match remote {
            Some(address) => Err(Failure::invalid(format_args!(
                "--listen {address} can be reached from other machines, and whoever reaches it can use the images; \
                     add --tls-certificates and --tls-verify-peer, or --allow-anyone"
            ))),
            None => Ok(()),
        }
    }
}

/// The server's bounds, each as given or as it is by default.
///
/// # Errors
/// Exit 22 for a bound that is out of range, in the option's name.
pub(super) fn server_config(args: &Args) -> Result<ServerConfig, Failure> {
    let default = ServerConfig::default();
    let bound = |option: &str, from: u64, to: u64, default: u64| match args.number(option) {
        None => Ok(default),
        Some(number) if (from..=to).contains(&number) => Ok(number),
        Some(number) => Err(Failure::invalid(format_args!(
            "--{option} {number} is not from {from} to {to}"
        ))),
    };
    let connections = bound("max-connections", 1, 1 << 20, default.max_connections as u64)?;
    let requests = bound("max-requests", 1, 1 << 16, default.max_in_flight_requests as u64)?;
    let bytes = bound(
        "max-request-bytes",
        1 << 20,
        1 << 30,
        default.max_in_flight_bytes.into(),
    )?;
    let seconds = bound(
        "handshake-timeout",
        1,
        86_400,
        default.handshake_timeout.as_secs(),
    )?;
    Ok(ServerConfig {
        max_connections: connections as usize,
        max_in_flight_requests: requests as usize,
        // At most 1 GiB, as checked.
        max_in_flight_bytes: bytes as u32,
        handshake_timeout: Duration::from_secs(seconds),
        on_no_space: match args.text("on-enospc") {
            Some("pause") => OnNoSpace::Pause,
            _ => OnNoSpace::Fail,
        },
        ..default
    })
}

fn address(option: &str, text: &str, example: &str) -> Result<SocketAddr, Failure> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| {
        Failure::invalid(format_args!(
            "--{option} '{text}' is not an address and a port, e.g. {example}"
        ))
    })
}

/// A port is one of this machine's own address.
fn metrics_address(text: &str) -> Result<SocketAddr, Failure> {
    match text.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        Err(_) => address("metrics", text, "127.0.0.1:9809"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::grammar::{Environment, Parsed, parse};

    fn options(words: &str) -> Result<ServeOptions, String> {
        ServeOptions::new(&invocation(words).args).map_err(|failure| failure.text().to_owned())
    }

    fn invocation(words: &str) -> Box<crate::grammar::Invocation> {
        let words = words.split_whitespace().map(OsString::from);
        let words = std::iter::once(OsString::from("serve")).chain(words);
        match parse(words, &Environment::default()) {
            Ok(Parsed::Run(invocation)) => invocation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn listeners_of_both_kinds_may_be_many() {
        let options = options("--socket /a --listen 127.0.0.1:1 --socket /b --listen [::1]:2 disk").unwrap();
        assert_eq!(options.sockets, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(
            options.addresses,
            ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]
        );
    }

    #[test]
    fn an_address_beyond_this_machine_needs_verified_clients_or_the_users_word() {
        for refused in [
            "--listen 0.0.0.0:1",
            "--listen 127.0.0.1:2 --listen [::]:1",
            "--listen 0.0.0.0:1 --tls-certificates /d",
        ] {
            let said = options(refused).unwrap_err();
            assert!(said.contains("--allow-anyone"), "{refused}: {said}");
        }
        for taken in ["--listen 127.0.0.1:1", "--listen 0.0.0.0:1 --allow-anyone"] {
            assert_eq!(options(taken).unwrap().addresses.len(), 1, "{taken}");
        }
        // Good enough to look at the certificates, which are not there.
        let said = options("--listen 0.0.0.0:1 --tls-certificates /d --tls-verify-peer").unwrap_err();
        assert!(said.contains("--tls-certificates: /d/server-cert.pem"), "{said}");
        assert!(
            options("--tls-verify-peer")
                .unwrap_err()
                .contains("--tls-certificates")
        );
    }

    #[test]
    fn a_pool_or_a_namespace_without_images_is_all_that_is_served() {
        let scope = |words| options(words).unwrap().scope;
        let pool = |pool: &str, namespace: Option<&str>| Scope::Pool {
            pool: pool.into(),
            namespace: namespace.map(str::to_owned),
        };
        assert_eq!(scope(""), Scope::Store);
        assert_eq!(scope("--pool p"), pool("p", None));
        assert_eq!(scope("--pool p --namespace n"), pool("p", Some("n")));
        assert_eq!(scope("--namespace n"), pool("rbd", Some("n")));
    }

    #[test]
    fn bounds_are_taken_and_their_limits_named() {
        let config =
            |words: &str| server_config(&invocation(words).args).map_err(|failure| failure.text().to_owned());
        let given =
            config("--max-connections 3 --max-requests 4 --max-request-bytes 8M --handshake-timeout 5")
                .unwrap();
        assert_eq!((given.max_connections, given.max_in_flight_requests), (3, 4));
        assert_eq!(given.max_in_flight_bytes, 8 << 20);
        assert_eq!(given.handshake_timeout, Duration::from_secs(5));
        assert_eq!(config("--on-enospc pause").unwrap().on_no_space, OnNoSpace::Pause);
        let none = config("").unwrap();
        assert_eq!(none.on_no_space, OnNoSpace::Fail);
        assert_eq!(none.max_connections, ServerConfig::default().max_connections);
        for out in [
            "--max-connections 0",
            "--max-requests 0",
            "--max-request-bytes 4K",
            "--max-request-bytes 2G",
            "--handshake-timeout 0",
        ] {
            let option = out.split(' ').next().unwrap();
            assert!(config(out).unwrap_err().contains(option), "{out}");
        }
    }

    #[test]
    fn metrics_are_shown_on_this_machine_unless_an_address_says_otherwise() {
        let metrics = |words| options(words).unwrap().metrics.map(|found| found.to_string());
        assert_eq!(metrics(""), None);
        assert_eq!(metrics("--metrics 9809").as_deref(), Some("127.0.0.1:9809"));
        assert_eq!(metrics("--metrics 0.0.0.0:9").as_deref(), Some("0.0.0.0:9"));
        assert!(options("--metrics nowhere").unwrap_err().contains("--metrics"));
    }
}

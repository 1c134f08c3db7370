//! Reports the state of the program to systemd: sd_notify(3), datagrams to the socket that `NOTIFY_SOCKET` names.

use std::{
    ffi::OsStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddr, UnixDatagram},
        },
    },
    sync::Arc,
    time::Duration,
};

use crate::tls;

/// How long the server may take to answer the liveness probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The service manager, where there is one.
#[derive(Clone)]
pub struct ServiceManager {
    socket: Option<Arc<(UnixDatagram, UnixAddr)>>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Reads the environment. Without `NOTIFY_SOCKET`, reports go nowhere.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` names no socket that can be written to.
    pub fn from_env() -> io::Result<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = socket.map(|name| open(&name)).transpose()?.map(Arc::new);
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // The watchdog is for another process where WATCHDOG_PID differs.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Ok(Self { watchdog: watchdog.filter(|_| socket.is_some()), socket })
    }

    /// Reports that the server is ready.
    pub fn ready(&self) {
        self.notify("READY=1\nSTATUS=serving");
    }

    /// Reports that the server is stopping.
    pub fn stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=answering what was accepted");
    }

    /// Resets the watchdog while `/livez` at `address`, by the scheme `http` or `https`, answers. Returns at once without a
    /// watchdog, otherwise never.
    pub async fn keep_watchdog(self, scheme: &str, address: SocketAddr, stopping: impl Fn() -> bool) {
        let Some(within) = self.watchdog else { return };
        let (url, client) = (liveness_url(scheme, address), tls::probe_client(PROBE_TIMEOUT));
        loop {
            let is_alive = async {
                let answer = client.as_ref().ok()?.get(&url).send().await.ok()?;
                Some(answer.status().is_success())
            };
            // For the stop, the service manager has its own timeout.
            if stopping() || is_alive.await == Some(true) {
                self.notify("WATCHDOG=1");
            } else {
                tracing::error!(%address, "the server does not answer itself");
            }
            tokio::time::sleep(within / 3).await;
        }
    }

    fn notify(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        let (socket, address) = &**socket;
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!(%error, "cannot report the state of the service to systemd");
        }
    }
}

/// Opens a path, or with a leading `@` a name in the abstract namespace.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, UnixAddr)> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => UnixAddr::from_abstract_name(rest)?,
        [b'/', ..] => UnixAddr::from_pathname(name)?,
        _ => {
            let told = format!("NOTIFY_SOCKET is {name:?}, it must begin with / or @");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, told));
        }
    };
    Ok((UnixDatagram::unbound()?, address))
}

/// Returns the URL of the liveness probe of the server at `address`.
fn liveness_url(scheme: &str, mut address: SocketAddr) -> String {
    // Some systems cannot connect to an unspecified address.
    match address.ip() {
        ip if !ip.is_unspecified() => (),
        IpAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    format!("{scheme}://{address}/livez")
}

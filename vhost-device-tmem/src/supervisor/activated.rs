// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets that systemd listens on for the daemon (socket units): before it starts, and while it is
//! stopped.
//!
//! They come among the descriptors that systemd has kept for the daemon, and are told from those by
//! their names, which a unit gives as its `FileDescriptorName=`.

use std::{
    fmt,
    os::{
        fd::OwnedFd,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
};

use nix::sys::socket::{getsockopt, sockopt};

use super::changes::purpose;
use crate::socket::SocketError;

/// What a socket is for. Names of these begin with `socket-`, and none in the descriptor store does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// `socket-control`: for operators.
    Control,
    /// `socket-guest-NAME`: for the guest of that name.
    Guest(String),
}

impl Purpose {
    fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix("socket-")? {
            "control" => Some(Self::Control),
            other => {
                let guest = other.strip_prefix("guest-")?;
                Some(Self::Guest(guest.to_owned()))
            }
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("operators"),
            Self::Guest(name) => f.write_str(&purpose(name)),
        }
    }
}

/// Those of this start of the daemon that nobody has claimed yet.
#[derive(Debug, Default)]
pub(super) struct Activated(Vec<(Purpose, UnixListener)>);

impl Activated {
    /// Adds a descriptor that is none of the descriptor store's.
    pub(super) fn add(&mut self, name: &str, socket: OwnedFd) {
        match Purpose::parse(name) {
            Some(purpose) => self.0.push((purpose, socket.into())),
            None => tracing::warn!(
                "systemd passes {name:?}, and there is no use for that: FileDescriptorName= of a \
                 socket unit has to be socket-control, or socket-guest-NAME"
            ),
        }
    }

    /// Returns the socket that is for this and at `path`, if systemd listens on one.
    ///
    /// # Errors
    ///
    /// Where it is another one, and nobody would know which counts.
    pub(super) fn claim(
        &mut self,
        purpose: &Purpose,
        path: &Path,
    ) -> Result<Option<UnixListener>, SocketError> {
        let Some(at) = self.0.iter().position(|(of, _)| of == purpose) else {
            return Ok(None);
        };
        let (_, listener) = self.0.remove(at);
        let address = listener.local_addr().ok();
        let there = address.as_ref().and_then(SocketAddr::as_pathname);
        let listens = getsockopt(&listener, sockopt::AcceptConn).unwrap_or(false);
        if listens && there == Some(path) {
            return Ok(Some(listener));
        }
        Err(SocketError::Activated {
            purpose: purpose.to_string(),
            path: path.to_owned(),
            there: there.map(Path::to_owned),
        })
    }

    /// Lets go of those that nobody has claimed.
    pub(super) fn drop_others(&mut self) {
        for (purpose, _) in self.0.drain(..) {
            tracing::warn!(
                "systemd listens for {purpose}, and the configuration says nothing of it: who \
                 connects there waits in vain; disable the socket unit, or mend the configuration"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn names_say_what_a_socket_is_for() {
        let guest = |name: &str| Some(Purpose::Guest(name.to_owned()));
        assert_eq!(Purpose::parse("socket-control"), Some(Purpose::Control));
        assert_eq!(Purpose::parse("socket-guest-web"), guest("web"));
        assert_eq!(Purpose::parse("socket-guest-control"), guest("control"));
        assert_eq!(Purpose::parse("socket-guest-a-b.c 1"), guest("a-b.c 1"));
        for other in [
            "socket-guest",
            "socket-",
            "control",
            "vhost-device-tmem.socket",
        ] {
            assert_eq!(Purpose::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_socket_is_where_the_configuration_says_or_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        let purpose = Purpose::Guest("a".to_owned());
        let activated = |socket: OwnedFd| {
            let mut activated = Activated::default();
            activated.add("socket-guest-a", socket);
            activated
        };
        let listener = UnixListener::bind(&path).unwrap();
        let mut one = activated(listener.try_clone().unwrap().into());
        let other = Purpose::Guest("b".to_owned());
        assert!(one.claim(&other, &path).unwrap().is_none());
        assert!(one.claim(&purpose, &path).unwrap().is_some());
        assert!(one.claim(&purpose, &path).unwrap().is_none());
        let elsewhere = place.path().join("b.sock");
        let mut one = activated(listener.into());
        let error = one.claim(&purpose, &elsewhere).unwrap_err().to_string();
        assert!(
            error.contains("a.sock") && error.contains("b.sock"),
            "{error}"
        );
        // Something that nobody can connect to.
        let datagrams = UnixDatagram::bind(&elsewhere).unwrap();
        let mut one = activated(datagrams.into());
        one.claim(&purpose, &elsewhere).unwrap_err();
    }
}

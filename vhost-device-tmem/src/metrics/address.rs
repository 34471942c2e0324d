// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where metrics are served.

use std::{
    fmt::{self, Display, Formatter},
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An address of the network.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "give an address and a port, such as 127.0.0.1:9752 or [::1]:9752, or the path of a socket"
)]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| AddressError)
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_a_slash_and_addresses_a_port() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!("127.0.0.1:9752".parse(), tcp("127.0.0.1:9752"));
        assert_eq!("[::]:1".parse(), tcp("[::]:1"));
        for path in ["/run/m.sock", "./m.sock", "/a:80"] {
            let address = Address::Unix(path.into());
            assert_eq!(address.to_string().parse(), Ok(address.clone()));
            assert_eq!(path.parse(), Ok(address));
        }
        for bad in ["", "9752", "localhost:9752", "127.0.0.1", "127.0.0.1:99999"] {
            assert_eq!(bad.parse::<Address>(), Err(AddressError), "{bad}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who may operate the daemon.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};

/// The most groups of a process that are looked at.
const MAX_GROUPS: usize = 1024;

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    uid: u32,
    gids: Vec<u32>,
}

impl Peer {
    /// Asks the kernel who it was that connected.
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(&stream.as_fd(), PeerCredentials)?;
        let mut gids = vec![0; MAX_GROUPS];
        let mut len = size_of_val(gids.as_slice()) as libc::socklen_t;
        // SAFETY: The kernel writes no more than `len` bytes, which is what `gids` has.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                gids.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        // Somebody who is in more groups is not in any.
        let count = match result {
            0 => len as usize / size_of::<u32>(),
            _ => 0,
        };
        gids.truncate(count);
        gids.push(credentials.gid());
        Ok(Self {
            uid: credentials.uid(),
            gids,
        })
    }
}

/// Who may operate the daemon: root, the user that it runs as, and a group. The mode of the socket
/// says the same, but may be changed by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    user: u32,
    group: Option<u32>,
}

impl Admitted {
    /// Root, this process's user, and `group`.
    pub fn new(group: Option<u32>) -> Self {
        Self {
            user: geteuid().as_raw(),
            group,
        }
    }

    /// Returns whether who connected may operate the daemon.
    ///
    /// # Errors
    ///
    /// The operating system's, where it does not know who that was.
    pub fn admits(self, stream: &UnixStream) -> io::Result<bool> {
        Ok(self.admits_peer(&Peer::of(stream)?))
    }

    fn admits_peer(self, peer: &Peer) -> bool {
        let group = self.group.is_some_and(|group| peer.gids.contains(&group));
        peer.uid == 0 || peer.uid == self.user || group
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::getegid;

    use super::*;

    #[test]
    fn root_the_user_and_the_group_are_admitted() {
        let admits = |group, uid, gids: &[u32]| {
            let gids = gids.to_vec();
            Admitted { user: 7, group }.admits_peer(&Peer { uid, gids })
        };
        assert!(admits(None, 0, &[]));
        assert!(admits(None, 7, &[1]));
        assert!(!admits(None, 8, &[0, 7]));
        assert!(admits(Some(5), 8, &[1, 5]));
        assert!(!admits(Some(5), 8, &[1, 6]));
    }

    #[test]
    fn the_kernel_knows_who_connected() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, geteuid().as_raw());
        assert!(peer.gids.contains(&getegid().as_raw()));
        assert!(Admitted::new(None).admits(&one).unwrap());
    }
}

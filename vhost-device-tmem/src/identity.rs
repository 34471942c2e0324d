// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Users and groups by name or number, and becoming another user.

use std::io;

use nix::unistd::{geteuid, setgroups, setresgid, setresuid, setuid, Gid, Group, Uid, User, ROOT};

/// Why the daemon does not run as the user that it was told.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such user.
    #[error("there is no user {0:?} (--user); create it first, or give a number")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {name:?} ({option}); create it first, or give a number")]
    NoGroup {
        /// The group.
        name: String,
        /// Where it was named.
        option: &'static str,
    },
    /// Only root may do so.
    #[error("--user and --group need a daemon that was started as root; leave them out")]
    NotRoot,
    /// The way back is open.
    #[error("the daemon is not root any more, and could become it again; this kernel is odd")]
    Reversible,
    /// The operating system refused.
    #[error("cannot run as user {uid}, group {gid}: {error}")]
    Io {
        /// The user.
        uid: Uid,
        /// The group.
        gid: Gid,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
}

/// Returns the number of the group that `option` gave by name or number.
///
/// # Errors
///
/// [`IdentityError::NoGroup`].
pub fn group(name: &str, option: &'static str) -> Result<u32, IdentityError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(IdentityError::NoGroup {
            name: name.to_owned(),
            option,
        }),
    }
}

/// A user to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
}

impl Identity {
    /// Returns whom `--user` and `--group` mean, if they are there. Without a group it is the
    /// user's own; a user that is given by number and not known has the group of that number.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn resolve(
        user: Option<&str>,
        in_group: Option<&str>,
    ) -> Result<Option<Self>, IdentityError> {
        let known = match user {
            None => None,
            Some(name) => {
                let known = match name.parse() {
                    Ok(number) => {
                        let uid = Uid::from_raw(number);
                        let gid = User::from_uid(uid).ok().flatten().map(|user| user.gid);
                        Some((uid, gid.unwrap_or(Gid::from_raw(number))))
                    }
                    Err(_) => User::from_name(name)
                        .ok()
                        .flatten()
                        .map(|user| (user.uid, user.gid)),
                };
                Some(known.ok_or_else(|| IdentityError::NoUser(name.to_owned()))?)
            }
        };
        let gid = match in_group {
            Some(name) => Some(Gid::from_raw(group(name, "--group")?)),
            None => None,
        };
        Ok(match (known, gid) {
            (None, None) => None,
            (known, gid) => {
                let (uid, own) = known.unwrap_or((geteuid(), Gid::current()));
                let gid = gid.unwrap_or(own);
                Some(Self { uid, gid })
            }
        })
    }

    /// Becomes the user, for good, in all threads. Besides its group the process is in `groups`
    /// alone. Capabilities are gone afterwards unless the user is root.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]; the process should end then, for it may be half of both.
    pub fn assume(self, groups: &[u32]) -> Result<(), IdentityError> {
        if !geteuid().is_root() {
            return Err(IdentityError::NotRoot);
        }
        let Self { uid, gid } = self;
        let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
        // Each step takes away the right to make the ones before.
        setgroups(&groups)
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(|error| IdentityError::Io {
                uid,
                gid,
                error: error.into(),
            })?;
        if !uid.is_root() && setuid(ROOT).is_ok() {
            return Err(IdentityError::Reversible);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_names_or_numbers() {
        let resolve = |user, group| Identity::resolve(user, group);
        let identity = |uid, gid| Identity {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
        };
        assert_eq!(resolve(None, None).unwrap(), None);
        let root = identity(0, 0);
        assert_eq!(resolve(Some("root"), None).unwrap(), Some(root));
        assert_eq!(resolve(Some("0"), Some("root")).unwrap(), Some(root));
        let stranger = identity(4_000_000_001, 4_000_000_001);
        assert_eq!(resolve(Some("4000000001"), None).unwrap(), Some(stranger));
        let mixed = identity(4_000_000_001, 7);
        assert_eq!(resolve(Some("4000000001"), Some("7")).unwrap(), Some(mixed));
        let error = resolve(Some("no such user"), None).unwrap_err();
        assert!(matches!(error, IdentityError::NoUser(name) if name == "no such user"));
        let error = group("no such group", "--socket-group")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"no such group\" (--socket-group)"),
            "{error}"
        );
    }
}

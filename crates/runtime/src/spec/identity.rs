//! Who a container's process is: Docker's reading of the image's `/etc/passwd` and `/etc/group`.

use crate::{Error, Result};

/// A user and its groups as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one included.
    pub(crate) groups: Vec<u32>,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// Finds `user[:group]` (names or numbers, empty is root) and adds the groups in `extra`.
pub(crate) fn resolve(passwd: &str, group: &str, wanted: &str, extra: &[String]) -> Result<Identity> {
    let groups: Vec<Group<'_>> = group.lines().filter_map(parse_group).collect();
    let (user, group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let entry = passwd.lines().filter_map(parse_user).find(|entry| match user.parse::<u32>() {
        Ok(uid) => entry.uid == uid,
        Err(_) if user.is_empty() => entry.uid == 0,
        Err(_) => entry.name == user,
    });
    let mut identity = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => Identity { uid: entry.uid, gid: entry.gid, groups: Vec::new() },
        (None, Ok(uid)) => Identity { uid, ..Identity::default() },
        (None, Err(_)) if user.is_empty() => Identity::default(),
        (None, Err(_)) => {
            return Err(Error::InvalidConfig(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    if group.is_empty() {
        let name = entry.map_or("", |entry| entry.name);
        let member = groups.iter().filter(|group| group.members.contains(&name));
        identity.groups.extend(member.map(|group| group.gid));
    } else {
        identity.gid = find_group(&groups, group)?;
    }
    for group in extra {
        identity.groups.push(find_group(&groups, group)?);
    }
    // A process that drops its primary group must not gain what that group is denied.
    identity.groups.push(identity.gid);
    identity.groups.sort_unstable();
    identity.groups.dedup();
    Ok(identity)
}

fn find_group(groups: &[Group<'_>], wanted: &str) -> Result<u32> {
    let number = wanted.parse::<u32>().ok();
    groups
        .iter()
        .find(|group| group.name == wanted || Some(group.gid) == number)
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| {
            Error::InvalidConfig(format!("unable to find group {wanted}: no matching entries in group file"))
        })
}

fn parse_user(line: &str) -> Option<User<'_>> {
    let mut fields = line.trim().split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    Some(User { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    Some(Group { name, gid, members: members.split(',').filter(|name| !name.is_empty()).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34:web:/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root\nweb:x:34:\nextra:x:50:www,other\n";

    fn identity(wanted: &str, extra: &[&str]) -> Result<Identity> {
        let extra: Vec<String> = extra.iter().map(|&name| name.to_owned()).collect();
        resolve(PASSWD, GROUP, wanted, &extra)
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        for (wanted, uid, gid, groups) in [
            ("", 0, 0, vec![0, 10]),
            ("root", 0, 0, vec![0, 10]),
            ("www", 33, 34, vec![34, 50]),
            ("33", 33, 34, vec![34, 50]),
            ("www:extra", 33, 50, vec![50]),
            ("www:77", 33, 77, vec![77]),
            ("1000", 1000, 0, vec![0]),
            ("1000:1001", 1000, 1001, vec![1001]),
        ] {
            assert_eq!(identity(wanted, &[]).unwrap(), Identity { uid, gid, groups }, "{wanted:?}");
        }
        assert_eq!(identity("www", &["wheel", "99"]).unwrap().groups, [10, 34, 50, 99]);
    }

    #[test]
    fn unknown_names_are_refused() {
        let text = identity("nobody", &[]).unwrap_err().to_string();
        assert_eq!(text, "unable to find user nobody: no matching entries in passwd file");
        assert!(identity("www:nogroup", &[]).is_err());
        assert!(identity("", &["nogroup"]).is_err());
        assert_eq!(resolve("", "", "", &[]).unwrap(), Identity { uid: 0, gid: 0, groups: vec![0] });
    }
}

//! What runs in a container: the image's defaults and the user's wishes, merged as Docker does.

use shoal_model::ContainerSpec;

use crate::{Error, ImageConfig, Result};

/// What Docker gives to every process whose image says nothing else.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program and its arguments: `command` replaces the image's entry point and voids its command,
/// `args` replaces its command.
pub(crate) fn argv(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>> {
    let entrypoint = if spec.command.is_empty() { &image.entrypoint } else { &spec.command };
    let cmd: &[String] = if !spec.args.is_empty() {
        &spec.args
    } else if spec.command.is_empty() {
        &image.cmd
    } else {
        &[]
    };
    let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        _ => Err(Error::InvalidConfig("no command specified".to_owned())),
    }
}

/// The environment. Later entries replace earlier ones of the same name in place; an entry without
/// `=` removes the name.
pub(crate) fn environment(spec: &ContainerSpec, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    merge(&mut env, &image.env);
    merge(&mut env, &spec.env);
    env
}

/// Adds `changes` to `env`.
pub(crate) fn merge(env: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let name = change.split('=').next().unwrap_or_default();
        let same = |entry: &String| entry.split('=').next() == Some(name);
        match (env.iter().position(same), change.contains('=')) {
            (Some(place), true) => env[place] = change.clone(),
            (Some(place), false) => drop(env.remove(place)),
            (None, true) => env.push(change.clone()),
            (None, false) => {}
        }
    }
}

/// The working directory, which must be absolute.
pub(crate) fn directory(spec: &ContainerSpec, image: &ImageConfig) -> Result<String> {
    let wanted = [&spec.dir, &image.workdir].into_iter().find(|dir| !dir.is_empty());
    match wanted {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        Some(dir) => Err(Error::InvalidConfig(format!(
            "the working directory '{dir}' is invalid, it needs to be an absolute path"
        ))),
    }
}

/// The container's host name: its own, or the short id.
pub(crate) fn hostname(spec: &ContainerSpec, short_id: &str) -> String {
    if spec.hostname.is_empty() { short_id.to_owned() } else { spec.hostname.clone() }
}

/// The signal that asks the container to stop: `SIGTERM`, `TERM` or `15`; also `SIGRTMIN+3`.
pub(crate) fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> Result<i32> {
    let text = [&spec.stop_signal, &image.stop_signal].into_iter().find(|text| !text.is_empty());
    match text {
        None => Ok(nix::libc::SIGTERM),
        Some(text) => {
            parse_signal(text).ok_or_else(|| Error::InvalidConfig(format!("invalid signal: {text}")))
        }
    }
}

fn parse_signal(text: &str) -> Option<i32> {
    let last = nix::libc::SIGRTMAX();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=last - nix::libc::SIGRTMIN()).contains(&offset).then(|| nix::libc::SIGRTMIN() + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=last - nix::libc::SIGRTMIN()).contains(&offset).then(|| last - offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_replace_what_docker_says() {
        let image =
            ImageConfig { entrypoint: words("/entry -x"), cmd: words("serve all"), ..ImageConfig::default() };
        for (command, args, expected) in [
            ("", "", "/entry -x serve all"),
            ("", "one", "/entry -x one"),
            ("sh", "", "sh"),
            ("sh -c", "true", "sh -c true"),
        ] {
            let spec =
                ContainerSpec { command: words(command), args: words(args), ..ContainerSpec::default() };
            assert_eq!(argv(&spec, &image).unwrap(), words(expected));
        }
        let nothing = argv(&ContainerSpec::default(), &ImageConfig::default());
        assert_eq!(nothing.unwrap_err().to_string(), "no command specified");
    }

    #[test]
    fn the_users_environment_wins() {
        let image = ImageConfig { env: words("PATH=/image A=1 B=2"), ..ImageConfig::default() };
        let spec = ContainerSpec { env: words("A=3 B C=4 D"), tty: true, ..ContainerSpec::default() };
        assert_eq!(environment(&spec, &image, "h"), words("PATH=/image HOSTNAME=h TERM=xterm A=3 C=4"));
        let plain = environment(&ContainerSpec::default(), &ImageConfig::default(), "h");
        assert_eq!(plain, [DEFAULT_PATH, "HOSTNAME=h"]);
    }

    #[test]
    fn signals_have_many_spellings() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("15", 15), ("SIGRTMIN+3", nix::libc::SIGRTMIN() + 3)]
        {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "99", "NOSUCH", "RTMIN+99"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}

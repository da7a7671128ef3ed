//! The first process of a container that asked for one: starts the container's program, passes signals on
//! to it, reaps whatever is left to it, and ends as the program ends.
//!
//! `docker-init [--] PROGRAM [ARGUMENT…]`. It runs inside any image, so it is built without dependencies
//! and linked statically (`build.rs`); nothing here may ever need a file of the container.

use std::io::{Error, ErrorKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, exit};

/// As shells do.
const NOT_FOUND: i32 = 127;
const CANNOT_RUN: i32 = 126;

fn main() {
    let mut words = std::env::args_os().skip(1).peekable();
    words.next_if(|word| word == "--");
    let Some(program) = words.next() else {
        eprintln!("docker-init: no program to run");
        exit(CANNOT_RUN);
    };
    // Held back from here on, so that none is lost before the program runs.
    let before = signals::hold();
    let mut command = Command::new(&program);
    command.args(words);
    signals::release_in(&mut command, before);
    match command.spawn() {
        Ok(child) => exit(look_after(child.id() as i32)),
        Err(error) => {
            eprintln!("docker-init: {}: {error}", program.display());
            exit(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN });
        }
    }
}

/// Until the program has ended; its exit code, or 128 and the signal that ended it.
fn look_after(program: i32) -> i32 {
    loop {
        match signals::next() {
            signals::CHILD => {
                while let Some((pid, status)) = signals::reap() {
                    if pid == program {
                        return code(status);
                    }
                }
            }
            signal => signals::send(program, signal),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// The few calls of the C library that the standard library does not offer.
mod signals {
    use super::{Command, CommandExt, Error, ExitStatus, ExitStatusExt};

    /// SIGCHLD.
    pub(crate) const CHILD: i32 = 17;
    /// Those that tell of a fault of this process itself (SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV,
    /// SIGSYS).
    const OWN: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];
    const SIG_SETMASK: i32 = 2;
    const WNOHANG: i32 = 1;
    /// Larger than `siginfo_t` anywhere.
    type Info = [u64; 16];
    /// `sigset_t` of glibc: 1,024 bits.
    pub(crate) type Set = [u64; 16];

    unsafe extern "C" {
        fn sigfillset(set: *mut Set) -> i32;
        fn sigdelset(set: *mut Set, signal: i32) -> i32;
        fn sigprocmask(how: i32, set: *const Set, old: *mut Set) -> i32;
        fn sigwaitinfo(set: *const Set, info: *mut Info) -> i32;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        fn kill(pid: i32, signal: i32) -> i32;
        fn setpgid(pid: i32, group: i32) -> i32;
        fn tcsetpgrp(fd: i32, group: i32) -> i32;
        fn getpid() -> i32;
    }

    fn held() -> Set {
        let mut set = Set::default();
        // SAFETY: `set` is as large as the C library's type.
        unsafe { sigfillset(&mut set) };
        for signal in OWN {
            // SAFETY: as above.
            unsafe { sigdelset(&mut set, signal) };
        }
        set
    }

    /// Holds signals back until [`next`] takes them; returns what was held back before.
    pub(crate) fn hold() -> Set {
        let (set, mut before) = (held(), Set::default());
        // SAFETY: both sets live and have the C library's size.
        unsafe { sigprocmask(SIG_SETMASK, &set, &mut before) };
        before
    }

    /// Lets the program that is started receive signals, in a group of its own that has the terminal, if
    /// there is one.
    pub(crate) fn release_in(command: &mut Command, before: Set) {
        // SIGTTOU among them: a process of another group than the terminal's may not be stopped for taking it.
        let held = held();
        let prepare = move || {
            // SAFETY: these calls may be made between fork and exec (signal-safety(7)), and touch only
            // the new process.
            unsafe {
                sigprocmask(SIG_SETMASK, &held, std::ptr::null_mut());
                if setpgid(0, 0) != 0 {
                    return Err(Error::last_os_error());
                }
                // Not an error without a terminal.
                tcsetpgrp(0, getpid());
                sigprocmask(SIG_SETMASK, &before, std::ptr::null_mut());
            }
            Ok(())
        };
        // SAFETY: see in `prepare`.
        unsafe { command.pre_exec(prepare) };
    }

    /// Waits for a signal.
    pub(crate) fn next() -> i32 {
        let (set, mut info) = (held(), Info::default());
        loop {
            // SAFETY: both live, and are at least as large as the C library's types.
            let signal = unsafe { sigwaitinfo(&set, &mut info) };
            if signal > 0 {
                return signal;
            }
        }
    }

    /// A process that has ended, if there is one.
    pub(crate) fn reap() -> Option<(i32, ExitStatus)> {
        let mut status = 0;
        // SAFETY: `status` lives.
        let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
        (pid > 0).then(|| (pid, ExitStatus::from_raw(status)))
    }

    /// To a process that may be gone.
    pub(crate) fn send(pid: i32, signal: i32) {
        // SAFETY: takes two numbers.
        unsafe { kill(pid, signal) };
    }
}

//! Runs a command on a terminal of its own. A test can wait for its output, type to it, and close the terminal like a
//! window.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::PATIENCE;

pub struct Terminal {
    /// `None` once it is closed.
    window: Option<File>,
    child: Child,
    shown: String,
    /// The beginning of a character whose rest has not come yet.
    begun: Vec<u8>,
}

impl Terminal {
    /// Runs a command, in a session of its own, on a terminal of so many columns.
    pub fn run(command: &Command, columns: u16) -> Self {
        Self::run_sized(command, columns, 40)
    }

    /// The same, of so many lines.
    pub fn run_sized(command: &Command, columns: u16, lines: u16) -> Self {
        let window = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&window).unwrap();
        unlockpt(&window).unwrap();
        rustix::io::ioctl_fionbio(&window, true).unwrap();
        tcsetwinsize(&window, Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        let name = ptsname(&window, Vec::new()).unwrap();
        let path = std::ffi::OsStr::from_bytes(name.as_bytes());
        let side = || Stdio::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
        let mut on_it = Command::new("setsid");
        on_it.arg("--ctty").arg(command.get_program()).args(command.get_args());
        on_it.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        on_it.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        on_it.current_dir(command.get_current_dir().unwrap());
        let child = on_it.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        Self { window: Some(window.into()), child, shown: String::new(), begun: Vec::new() }
    }

    /// Waits until it has shown this; returns all that it has shown.
    pub fn until(&mut self, text: &str) -> &str {
        let started = Instant::now();
        while !self.shown.contains(text) {
            assert!(started.elapsed() < PATIENCE, "never shown: {text:?}, but:\n{}", self.shown);
            assert!(self.read(), "it ended without {text:?}:\n{}", self.shown);
        }
        &self.shown
    }

    /// Forgets what it has shown so far.
    pub fn forget(&mut self) {
        self.shown.clear();
    }

    pub fn type_in(&mut self, text: &str) {
        self.window.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Closes the terminal, as closing its window does.
    pub fn close(&mut self) {
        self.window = None;
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; returns all that it has shown.
    pub fn end(mut self) -> (ExitStatus, String) {
        let started = Instant::now();
        let status = loop {
            let more = self.window.is_some() && self.read();
            if let Some(status) = self.child.try_wait().unwrap()
                && !more
            {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end:\n{}", self.shown);
        };
        (status, std::mem::take(&mut self.shown))
    }

    /// Reads what it has shown meanwhile; `false` once nothing can come any more.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.window.as_mut().unwrap().read(&mut bytes) {
            Ok(read) => {
                self.begun.extend_from_slice(&bytes[..read]);
                let whole = match std::str::from_utf8(&self.begun) {
                    Err(error) if error.error_len().is_none() => error.valid_up_to(),
                    _ => self.begun.len(),
                };
                let whole: Vec<u8> = self.begun.drain(..whole).collect();
                self.shown.push_str(&String::from_utf8_lossy(&whole));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            // Nobody has it open on the other side.
            Err(_) => return false,
        }
        true
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

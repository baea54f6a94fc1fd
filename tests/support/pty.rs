//! A command at a pseudo-terminal of its own, of which it leads the session.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Starts it at a terminal of so many rows and columns, and of a kind (`TERM`). The file is the other end: what is
/// written to it are keys, what is read from it goes to the screen.
pub fn start(mut command: Command, (rows, columns): (u16, u16), kind: &str) -> (File, Child) {
    let pair = nix::pty::openpty(Some(&size(rows, columns)), None).unwrap();
    let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdin(end(&pair.slave)).stdout(end(&pair.slave)).stderr(end(&pair.slave));
    command.env("TERM", kind);
    let master = pair.master.as_raw_fd();
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::close(master);
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    (File::from(pair.master), child)
}

/// Gives the terminal another size; its session is told (SIGWINCH).
pub fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = size(rows, columns);
    // SAFETY: the argument is what this ioctl takes, and lives through the call.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
}

fn size(rows: u16, columns: u16) -> nix::pty::Winsize {
    nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

//! The plain way: a process that is started anew whenever it ends, as `Restart=always` of systemd does it.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

/// Runs until it is dropped.
pub(crate) struct RestartLoop {
    pub(crate) address: SocketAddr,
    pid: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RestartLoop {
    pub(crate) fn start(port: u16, command: Vec<String>) -> Self {
        let (pid, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, stopped) = (Arc::clone(&pid), Arc::clone(&stop));
        let run = move || {
            while !stopped.load(Ordering::SeqCst) {
                let Ok(mut child) = in_own_group(&command).spawn() else { return };
                told.store(child.id(), Ordering::SeqCst);
                // Started while it was being stopped.
                if stopped.load(Ordering::SeqCst) {
                    kill_group(child.id());
                }
                _ = child.wait();
                // Workers that the dead one has left keep the port.
                kill_group(child.id());
            }
        };
        let thread = Some(std::thread::spawn(run));
        Self { address: ([127, 0, 0, 1], port).into(), pid, stop, thread }
    }

    /// The process that runs now; 0 before the first one.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }
}

impl Drop for RestartLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        kill_group(self.pid());
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Killed when it goes out of scope.
pub(crate) struct Kept(Child);

impl Kept {
    pub(crate) fn start(command: &[String]) -> std::io::Result<Self> {
        in_own_group(command).spawn().map(Self)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        kill_group(self.0.id());
        _ = self.0.wait();
    }
}

/// In a process group of its own, and gone when this process is.
fn in_own_group(command: &[String]) -> Command {
    let mut prepared = Command::new(&command[0]);
    prepared.args(&command[1..]).process_group(0);
    prepared.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec the child makes one system call, prctl, which is allowed there.
    unsafe {
        prepared.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    prepared
}

fn kill_group(pid: u32) {
    if pid > 1 {
        // SAFETY: plain system call, on a group that was made here.
        unsafe { libc::kill(-pid.cast_signed(), libc::SIGKILL) };
    }
}

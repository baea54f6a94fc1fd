//! A command line that can be executed: looked up before anything is set up for it, so that a typing error
//! costs nothing, and turned into the form that `execve` takes before any fork.

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::cell::Cell;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where `execvp` looks when there is no `PATH` (glibc's `confstr(_CS_PATH)`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why a command can't be run. Its text fits behind `standin: `.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unrunnable {
    /// Nothing of that name: exit code 127.
    #[error("{0}: command not found")]
    NotFound(String),
    /// Something is there, but it can't be executed: exit code 126.
    #[error("{0}: {1}")]
    NotExecutable(String, &'static str),
}

impl Unrunnable {
    /// From what `execve` said.
    pub fn from_errno(program: &str, errno: i32) -> Self {
        match Errno::from_raw(errno) {
            Errno::ENOENT => Self::NotFound(program.into()),
            other => Self::NotExecutable(program.into(), other.desc()),
        }
    }

    /// As `env`, `timeout` and the shells have it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(..) => 126,
        }
    }
}

/// A program and its arguments, ready for `execve`.
#[derive(Debug)]
pub struct Command {
    argv: Vec<OsString>,
    program: CString,
    arguments: Vec<CString>,
}

impl Command {
    /// Looks the program up as `execvp` would: a name with a slash is a path, any other is searched in `PATH`.
    ///
    /// # Errors
    /// [`Unrunnable`], also for an empty name or one with a NUL byte.
    pub fn resolve(argv: Vec<OsString>) -> Result<Self, Unrunnable> {
        let name = argv.first().cloned().unwrap_or_default();
        let path = find(&name)?;
        let c_string = |text: &OsStr| {
            let shown = text.to_string_lossy().into_owned();
            CString::new(text.as_bytes())
                .map_err(|_| Unrunnable::NotExecutable(shown, "argument holds a NUL byte"))
        };
        let program = c_string(path.as_os_str())?;
        let arguments = argv.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?;
        Ok(Self { argv, program, arguments })
    }

    /// The command line as given.
    pub fn argv(&self) -> &[OsString] {
        &self.argv
    }

    /// The program as given, for messages.
    pub fn name(&self) -> String {
        self.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Becomes the command. Comes back only if the kernel refuses, with its reason. Does not allocate, so it
    /// may be called between fork and exec.
    pub fn execute(&self, prepared: &Prepared) -> Errno {
        // SAFETY: both pointer lists are null-terminated and outlive the call.
        unsafe {
            libc::execve(self.program.as_ptr(), prepared.arguments.as_ptr(), prepared.environment.as_ptr())
        };
        let errno = Errno::last();
        if errno == Errno::ENOEXEC {
            // A script without `#!`: `execvp` gives it to the shell.
            // SAFETY: both pointer lists are null-terminated and outlive the call.
            unsafe {
                libc::execve(c"/bin/sh".as_ptr(), prepared.shell.as_ptr(), prepared.environment.as_ptr())
            };
        }
        errno
    }

    /// The pointer lists that `execve` takes, made while allocating is still allowed.
    pub fn prepare(&self) -> Prepared {
        self.prepare_with(&[])
    }

    /// As [`Command::prepare`], with variables set on top of the environment.
    pub fn prepare_with(&self, variables: &[(&str, OsString)]) -> Prepared {
        let inherited = std::env::vars_os().filter(|(name, _)| variables.iter().all(|(set, _)| name != set));
        let set = variables.iter().map(|(name, value)| (OsString::from(name), value.clone()));
        let environment: Vec<CString> = inherited
            .chain(set)
            .filter_map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                CString::new(name.into_vec()).ok()
            })
            .collect();
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let arguments = pointers(&self.arguments);
        let mut shell = vec![c"/bin/sh".as_ptr(), self.program.as_ptr()];
        shell.extend(arguments.iter().skip(1));
        let environment_pointers = pointers(&environment);
        Prepared { arguments, shell, environment: environment_pointers, pid: None, _environment: environment }
    }
}

/// Longest decimal pid (`PID_MAX_LIMIT` is 2^22) with its final NUL.
const PID_BYTES: usize = 12;

/// See [`Command::prepare`]. Borrows from its command, which must outlive it.
#[derive(Debug)]
pub struct Prepared {
    arguments: Vec<*const libc::c_char>,
    shell: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// `NAME=` and room for a pid.
    pid: Option<Box<[Cell<u8>]>>,
    _environment: Vec<CString>,
}

impl Prepared {
    /// Adds a variable whose value will be the pid of the process that executes.
    pub fn with_own_pid_as(mut self, name: &str) -> Self {
        let text = format!("{name}=").into_bytes().into_iter().chain([0; PID_BYTES]);
        let text: Box<[Cell<u8>]> = text.map(Cell::new).collect();
        self.environment.insert(0, text.as_ptr().cast());
        self.pid = Some(text);
        self
    }

    /// Writes the pid of the calling process into that variable. Does not allocate, so it may be called between
    /// fork and exec.
    pub(super) fn stamp(&self) {
        let Some(text) = &self.pid else { return };
        let start = text.len() - PID_BYTES;
        let mut pid = std::process::id();
        let digits = pid.checked_ilog10().unwrap_or(0) as usize + 1;
        for place in (start..start + digits).rev() {
            text[place].set(b'0' + (pid % 10) as u8);
            pid /= 10;
        }
    }
}

fn find(name: &OsStr) -> Result<PathBuf, Unrunnable> {
    let shown = name.to_string_lossy().into_owned();
    if name.is_empty() {
        return Err(Unrunnable::NotFound("''".into()));
    }
    if name.as_bytes().contains(&b'/') {
        return runnable(Path::new(name)).map_err(|problem| problem.unwrap_or(Unrunnable::NotFound(shown)));
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in std::env::split_paths(&search) {
        match runnable(&directory.join(name)) {
            Ok(path) => return Ok(path),
            Err(problem) => refused = refused.or(problem),
        }
    }
    Err(refused.unwrap_or(Unrunnable::NotFound(shown)))
}

/// `Err(None)` if there is nothing of that name.
fn runnable(path: &Path) -> Result<PathBuf, Option<Unrunnable>> {
    let refuse = |why| Some(Unrunnable::NotExecutable(path.display().to_string(), why));
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(refuse("is a directory")),
        Ok(_) if access(path, AccessFlags::X_OK).is_err() => Err(refuse("permission denied")),
        Ok(_) => Ok(path.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(refuse("permission denied"))
        }
        Err(_) => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str) -> Result<CString, Unrunnable> {
        Command::resolve(vec![name.into()]).map(|command| command.program)
    }

    #[test]
    fn looks_up_like_a_shell() {
        assert!(resolve("sh").unwrap().to_str().unwrap().ends_with("/sh"));
        assert_eq!(resolve("/bin/sh").unwrap().to_str(), Ok("/bin/sh"));
        assert_eq!(resolve("no-such-program").unwrap_err().exit_code(), 127);
        assert_eq!(resolve("/no/such").unwrap_err().exit_code(), 127);
        assert_eq!(resolve("").unwrap_err().exit_code(), 127);
        assert_eq!(resolve("/").unwrap_err().exit_code(), 126);
        assert_eq!(resolve("/etc/passwd").unwrap_err().exit_code(), 126);
    }
}

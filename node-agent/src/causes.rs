//! An error and its causes in one line. Some errors quote their cause and some don't, so what was said already
//! is left out.

use std::error::Error;

/// `failed to open x: permission denied`.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // `Error code 26: file is not a database` adds nothing to `file is not a database`.
        let core = text.rsplit(": ").next().unwrap_or(&text);
        if !line.contains(core) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot open x")]
        Silent(#[source] io::Error),
        #[error("cannot open x: {0}")]
        Quoting(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::from_raw_os_error(13);
        for error in [Failure::Silent(cause()), Failure::Quoting(cause())] {
            assert_eq!(in_one_line(&error), "cannot open x: Permission denied (os error 13)");
        }
    }
}

//! Who else listens where the service does: SO_REUSEPORT lets another program of the same user share the port,
//! and the service would lose a part of its connections to it without a word.

use super::Address;
use procfs::FromBufReadSI;
use procfs::net::{TcpNetEntries, TcpNetEntry};
use procfs::process::{FDTarget, Process};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

/// State of a socket that listens, as `/proc/net/tcp` writes it (`TCP_LISTEN`).
const LISTENS: &str = "0A";

/// Processes other than `own` that listen on one of `addresses`, with the address. Looks at the descriptors of all
/// processes of the host, which may take a while.
pub fn strangers(addresses: &[Address], own: &HashSet<i32>) -> Vec<(i32, Address)> {
    let listening = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(listening);
    let wanted: HashMap<u64, Address> = listening
        .filter_map(|entry| {
            let same = addresses
                .iter()
                .find(|address| !address.is_datagram && address.socket == entry.local_address);
            same.map(|address| (entry.inode, *address))
        })
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut owned = HashSet::new();
    let mut others = Vec::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        for inode in socket_inodes(&process) {
            match wanted.get(&inode) {
                Some(_) if own.contains(&process.pid) => _ = owned.insert(inode),
                Some(address) => others.push((inode, process.pid, *address)),
                None => {}
            }
        }
    }
    // Whoever shares a socket of ours (a holder, a child on its way out) is no stranger.
    others.retain(|(inode, ..)| !owned.contains(inode));
    others.into_iter().map(|(_, pid, address)| (pid, address)).collect()
}

/// The sockets that listen. The kernel lists them first (`tcp_get_idx`, net/ipv4/tcp_ipv4.c); the connections that
/// follow, closed ones too, can be so many that listing them takes seconds.
fn listening(path: &str) -> Vec<TcpNetEntry> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    let mut table = lines.next().unwrap_or_default();
    for line in lines.take_while(|line| line.split_whitespace().nth(3) == Some(LISTENS)) {
        table.push('\n');
        table.push_str(&line);
    }
    TcpNetEntries::from_buf_read(table.as_bytes(), procfs::current_system_info())
        .map_or_else(|_| Vec::new(), |TcpNetEntries(entries)| entries)
}

fn socket_inodes(process: &Process) -> impl Iterator<Item = u64> + use<> {
    let descriptors = process.fd().into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| match descriptor.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn names_who_else_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address { is_datagram: false, socket: listener.local_addr().unwrap() };
        let me = std::process::id().cast_signed();
        // What another test starts has it too, until it executes its program.
        assert!(strangers(&[address], &HashSet::new()).contains(&(me, address)));
        assert_eq!(strangers(&[address], &HashSet::from([me])), []);
    }

    #[test]
    fn connections_are_not_read() {
        let row = |number: u32, state: &str| {
            format!(
                "{number}: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {number} 1 0 100 0 0 10 0\n"
            )
        };
        let mut table = tempfile::NamedTempFile::new().unwrap();
        write!(table, "sl local_address rem_address st\n{}{}", row(0, "0A"), row(1, "0A")).unwrap();
        write!(table, "{}these would take seconds\n{}", row(2, "06"), row(3, "0A")).unwrap();
        let found = listening(table.path().to_str().unwrap());
        assert_eq!(found.iter().map(|entry| entry.inode).collect::<Vec<_>>(), [0, 1]);
    }
}

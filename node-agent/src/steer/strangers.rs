//! Who else listens where the service does: SO_REUSEPORT lets another program of the same user share the port,
//! and the service would lose a part of its connections to it without a word.

use super::Address;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use std::collections::{HashMap, HashSet};

/// Processes other than `own` that listen on one of `addresses`, with the address.
pub fn strangers(addresses: &[Address], own: &HashSet<i32>) -> Vec<(i32, Address)> {
    let listening = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let wanted: HashMap<u64, Address> = listening
        .filter(|entry| entry.state == TcpState::Listen)
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
    use std::net::TcpListener;

    #[test]
    fn names_who_else_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address { is_datagram: false, socket: listener.local_addr().unwrap() };
        let me = std::process::id().cast_signed();
        assert_eq!(strangers(&[address], &HashSet::new()), [(me, address)]);
        assert_eq!(strangers(&[address], &HashSet::from([me])), []);
    }
}

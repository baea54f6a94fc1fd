//! What a disk keeps when its power is cut.
//!
//! QEMU's `blklogwrites` logs everything that a guest writes to a disk, and when the guest asked for a flush, in the format
//! of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst). Made from the disk as it was
//! before and that log: the disk as it may be after a cut. What was written before the last flush is there. Of what came
//! after it a disk's volatile cache has written back anything, in any order: so each block is there or not, by a coin.
//!
//! (A write that was under way at a flush counts as before it; a guest that relies on a flush waits for its writes first.)
use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

/// First field of the log.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// Flags of an entry.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What is written whole or not at all: the sector of a disk, as it is made today.
const BLOCK: usize = 4096;

/// Entries of a log begin at multiples of this; it is the sector size that QEMU logs with.
const SECTOR: u64 = 512;

/// One write, or a flush.
struct Entry {
    /// Where on the disk, bytes.
    place: u64,
    /// How much, bytes.
    length: u64,
    flags: u64,
    /// Where in the log the data are.
    data: u64,
}

/// What became of what was written.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Blocks that were flushed.
    pub(super) flushed: u64,
    /// Blocks after the last flush that are there, and that are not.
    pub(super) by_luck: u64,
    pub(super) lost: u64,
}

/// A log up to a moment.
pub(super) struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

impl WriteLog {
    pub(super) fn open(log: &Path) -> Result<Self> {
        let file = File::open(log)?;
        let entries = entries(&file)?;
        Ok(Self { file, entries })
    }

    /// Cuts the power just after one of the writes that were logged beyond `from` (a size of the log); gives the size
    /// that the log has then.
    pub(super) fn cut(&mut self, from: u64, chance: &mut Rng) -> Result<u64> {
        let is_late_write = |entry: &Entry| entry.data >= from && entry.length > 0;
        let writes: Vec<_> = (0..self.entries.len()).filter(|at| is_late_write(&self.entries[*at])).collect();
        let last = chance.choice(writes).context("nothing was written any more")?;
        self.entries.truncate(last + 1);
        let last = &self.entries[last];
        Ok(last.data + last.length)
    }

    /// Writes to `disk` what it would have kept.
    pub(super) fn replay(&self, disk: &Path, chance: &mut Rng) -> Result<Kept> {
        let disk = File::options().write(true).open(disk)?;
        let flushed = self.entries.iter().rposition(|entry| entry.flags & FLUSH != 0).unwrap_or(0);
        let mut kept = Kept::default();
        for (number, entry) in self.entries.iter().enumerate() {
            if entry.flags & DISCARD != 0 {
                continue;
            }
            let mut data = vec![0; usize::try_from(entry.length)?];
            self.file.read_exact_at(&mut data, entry.data)?;
            for (block, place) in data.chunks(BLOCK).zip((entry.place..).step_by(BLOCK)) {
                if number <= flushed || entry.flags & FUA != 0 {
                    kept.flushed += 1;
                } else if chance.bool() {
                    kept.by_luck += 1;
                } else {
                    kept.lost += 1;
                    continue;
                }
                disk.write_all_at(block, place)?;
            }
        }
        Ok(kept)
    }
}

/// The entries up to the end of the file: the count at its beginning may be older. What QEMU was about to log when it
/// was killed is cut off, or a hole, which reads as an empty entry.
fn entries(log: &File) -> Result<Vec<Entry>> {
    let size = log.metadata()?.len();
    ensure!(word(log, 0)? == MAGIC, "QEMU wrote no log of the disk");
    ensure!(word(log, 24)? & 0xffff_ffff == SECTOR, "the log has sectors of another size");
    let (mut entries, mut at) = (Vec::new(), SECTOR);
    while at + SECTOR <= size {
        let (sector, sectors, flags) = (word(log, at)?, word(log, at + 8)?, word(log, at + 16)?);
        let entry = Entry { place: sector * SECTOR, length: sectors * SECTOR, flags, data: at + SECTOR };
        let length = if flags & DISCARD == 0 { entry.length } else { 0 };
        at = entry.data.checked_add(length).context("the log makes no sense")?;
        if at <= size {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// A number of the log.
fn word(log: &File, at: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    log.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs};

    /// A log of these: where, how many sectors, flags. Every byte that is written is 7.
    fn log_of(entries: &[(u64, u64, u64)]) -> Vec<u8> {
        let header = |words: [u64; 4]| {
            let mut bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(SECTOR as usize, 0);
            bytes
        };
        let mut log = header([MAGIC, 1, 0, SECTOR]);
        for (sector, sectors, flags) in entries {
            log.extend(header([*sector, *sectors, *flags, 0]));
            log.resize(log.len() + (sectors * SECTOR) as usize, 7);
        }
        log
    }

    #[test]
    fn what_was_flushed_is_there_and_what_was_not_is_there_in_part() {
        let directory = env::temp_dir().join(format!("standin-write-log-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (log, disk) = (directory.join("log"), directory.join("disk"));
        let mut bytes = log_of(&[(0, 8, 0), (0, 0, FLUSH), (8, 8 * 64, 0), (8 + 8 * 64, 8, 0)]);
        // The last one was cut off by the end of QEMU.
        bytes.truncate(bytes.len() - 100);
        fs::write(&log, bytes).unwrap();
        fs::write(&disk, vec![0; BLOCK * 66]).unwrap();
        let mut chance = Rng::with_seed(1);
        let mut writes = WriteLog::open(&log).unwrap();
        let end = writes.cut(SECTOR * 12, &mut chance).unwrap();
        assert_eq!(end, SECTOR * (12 + 8 * 64));
        let kept = writes.replay(&disk, &mut chance).unwrap();
        assert_eq!((kept.flushed, kept.by_luck + kept.lost), (1, 64));
        assert!(kept.by_luck > 0 && kept.lost > 0, "{kept:?}");
        let disk = fs::read(&disk).unwrap();
        let is_there = |block: usize| disk[block * BLOCK..][..BLOCK] == [7; BLOCK];
        assert!(is_there(0) && !is_there(65));
        assert_eq!((1..65).filter(|block| is_there(*block)).count() as u64, kept.by_luck);
        fs::remove_dir_all(directory).unwrap();
    }
}

//! Reads the lines of a log across its rotated files, as they are or while they grow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::container::LOG;

/// Read at once; a batch of lines is what one such read completes.
const CHUNK: usize = 256 << 10;
/// More rotated files than this are not looked for.
const MOST_FILES: u32 = 1000;

/// A position in a container's log.
pub(super) struct Reader {
    dir: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    /// At the first line, or at the last so many.
    pub(super) fn open(dir: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut files: VecDeque<File> = VecDeque::new();
        for number in 0..MOST_FILES {
            match File::open(name(dir, number)) {
                Ok(file) => files.push_front(file),
                Err(error) if error.kind() == ErrorKind::NotFound && number > 0 => break,
                // Not written yet, or being rotated.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let file = match tail {
            None => files.pop_front(),
            Some(tail) => start_of_tail(files, tail)?,
        };
        Ok(Self { dir: dir.to_owned(), file, partial: Vec::new() })
    }

    /// The next complete lines; none when there are none for now.
    pub(super) fn lines(&mut self) -> io::Result<Vec<Vec<u8>>> {
        loop {
            let mut chunk = Vec::new();
            if let Some(file) = &mut self.file {
                file.take(CHUNK as u64).read_to_end(&mut chunk)?;
            }
            if chunk.is_empty() {
                if !self.advance()? {
                    return Ok(Vec::new());
                }
                continue;
            }
            self.partial.extend_from_slice(&chunk);
            let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else { continue };
            let rest = self.partial.split_off(end + 1);
            let complete = std::mem::replace(&mut self.partial, rest);
            return Ok(complete.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect());
        }
    }

    /// At the end of a file: goes on with the next newer one. `false` when this is the newest.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            // Nothing was written yet when this began.
            self.file = open(&self.dir, 0)?;
            return Ok(self.file.is_some());
        };
        let (inode, length) = (file.metadata()?.ino(), file.metadata()?.len());
        if file.stream_position()? > length {
            // The writer took back part of a line for which the disk had no room.
            file.seek(SeekFrom::Start(length))?;
            self.partial.clear();
        }
        let Some(newer) = newer(&self.dir, inode)? else { return Ok(false) };
        // Written before it was renamed, but after it was last read.
        if file.stream_position()? < file.metadata()?.len() {
            return Ok(true);
        }
        self.partial.clear();
        self.file = Some(newer);
        Ok(true)
    }
}

/// The file that follows the one with this inode, which is open and so cannot be another's.
fn newer(dir: &Path, inode: u64) -> io::Result<Option<File>> {
    loop {
        let (mut place, mut missing) = (Vec::new(), 0);
        // While files are being renamed, one name at a time is missing.
        for number in 0..MOST_FILES {
            let found = inode_of(dir, number);
            missing = if found.is_some() { 0 } else { missing + 1 };
            if missing == 2 {
                break;
            }
            place.push((number, found));
        }
        let own = place.iter().find(|(_, found)| *found == Some(inode)).map(|(number, _)| *number);
        let next = match own {
            Some(0) => return Ok(None),
            Some(number) => number - 1,
            // Rotated out of existence: the oldest there is follows.
            None => place.iter().rev().find(|(_, found)| found.is_some()).map_or(0, |(number, _)| *number),
        };
        let file = open(dir, next)?;
        let moved = own.is_some_and(|number| inode_of(dir, number) != Some(inode));
        if !moved {
            return Ok(file);
        }
    }
}

fn name(dir: &Path, number: u32) -> PathBuf {
    match number {
        0 => dir.join(LOG),
        number => dir.join(format!("{LOG}.{number}")),
    }
}

fn inode_of(dir: &Path, number: u32) -> Option<u64> {
    std::fs::metadata(name(dir, number)).ok().map(|data| data.ino())
}

fn open(dir: &Path, number: u32) -> io::Result<Option<File>> {
    match File::open(name(dir, number)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file, oldest first in `files`, in which the last `tail` lines begin, at their beginning.
fn start_of_tail(mut files: VecDeque<File>, mut tail: u64) -> io::Result<Option<File>> {
    while let Some(mut file) = files.pop_back() {
        let found = seek_back(&mut file, tail)?;
        if found == tail || files.is_empty() {
            return Ok(Some(file));
        }
        tail -= found;
    }
    Ok(None)
}

/// Goes back from the end by so many lines; returns how many there were.
fn seek_back(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut position = file.seek(SeekFrom::End(0))?;
    let mut found = 0;
    let mut block = vec![0; 64 << 10];
    // The line feed before the first wanted line is the one to find; the last line's own is passed.
    while position > 0 {
        let size = position.min(block.len() as u64);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..size as usize];
        file.read_exact(block)?;
        for place in (0..block.len()).rev().filter(|&place| block[place] == b'\n') {
            if found == lines {
                file.seek(SeekFrom::Start(position + place as u64 + 1))?;
                return Ok(lines);
            }
            found += 1;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(dir: &Path, number: u32, lines: std::ops::Range<u32>) {
        let mut file = File::options().create(true).append(true).open(name(dir, number)).unwrap();
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
    }

    fn rotate(dir: &Path) {
        std::fs::rename(name(dir, 1), name(dir, 2)).ok();
        std::fs::rename(name(dir, 0), name(dir, 1)).unwrap();
    }

    fn rest(reader: &mut Reader) -> Vec<u32> {
        let mut numbers = Vec::new();
        loop {
            let lines = reader.lines().unwrap();
            if lines.is_empty() {
                return numbers;
            }
            numbers.extend(
                lines.iter().map(|line| String::from_utf8_lossy(line).trim().parse::<u32>().unwrap()),
            );
        }
    }

    #[test]
    fn the_tail_reaches_across_files() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), 2, 0..10);
        append(dir.path(), 1, 10..20);
        append(dir.path(), 0, 20..30);
        for (tail, first) in [
            (None, 0),
            (Some(0), 30),
            (Some(1), 29),
            (Some(10), 20),
            (Some(11), 19),
            (Some(25), 5),
            (Some(99), 0),
        ] {
            let mut reader = Reader::open(dir.path(), tail).unwrap();
            assert_eq!(rest(&mut reader), (first..30).collect::<Vec<_>>(), "{tail:?}");
        }
    }

    #[test]
    fn a_follower_passes_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(dir.path(), None).unwrap();
        assert!(rest(&mut reader).is_empty());
        append(dir.path(), 0, 0..5);
        assert_eq!(rest(&mut reader), [0, 1, 2, 3, 4]);
        append(dir.path(), 0, 5..7);
        rotate(dir.path());
        append(dir.path(), 0, 7..9);
        rotate(dir.path());
        append(dir.path(), 0, 9..10);
        assert_eq!(rest(&mut reader), [5, 6, 7, 8, 9], "two rotations since the last read");
        rotate(dir.path());
        assert!(rest(&mut reader).is_empty(), "the newest file is missing for a moment");
        append(dir.path(), 0, 10..11);
        assert_eq!(rest(&mut reader), [10]);
        for round in 0..3 {
            append(dir.path(), 0, 11 + round..12 + round);
            rotate(dir.path());
        }
        append(dir.path(), 0, 14..15);
        assert_eq!(rest(&mut reader).last(), Some(&14), "what it read from is gone");
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(name(dir.path(), 0), "1\n2").unwrap();
        let mut reader = Reader::open(dir.path(), None).unwrap();
        assert_eq!(rest(&mut reader), [1]);
        File::options().append(true).open(name(dir.path(), 0)).unwrap().write_all(b"3\n").unwrap();
        assert_eq!(rest(&mut reader), [23]);
    }
}

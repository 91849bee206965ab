//! Writes lines to a file, a device, a named pipe or standard output: whole ones, whatever becomes of the place.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::Place;

/// Who may read a file that the agent makes: it holds names and addresses.
const MODE: u32 = 0o600;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Writer {
    /// Standard output when absent.
    path: Option<PathBuf>,
    /// Absent as long as nobody reads the named pipe that it is.
    file: Option<File>,
    /// It ends within a line.
    torn: bool,
}

impl Writer {
    /// Opens the file; makes it where it is not. A named pipe may have no reader yet.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is something that no log belongs on.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let (file, torn) = match path {
            None => (Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)), false),
            Some(path) => {
                let file = open(path)?;
                let torn = file.as_ref().is_some_and(|file| ends_within_a_line(file, path));
                (file, torn)
            }
        };
        Ok(Self { path: path.map(Path::to_owned), file, torn })
    }

    /// Whether somebody or something takes the lines.
    pub(super) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    fn fail(&mut self, written: usize, error: io::Error) -> io::Error {
        let file = self.file.as_mut();
        if written > 0 && !file.is_some_and(|file| take_back(file, written as u64).unwrap_or(false)) {
            self.torn = true;
        }
        error
    }
}

impl Place for Writer {
    /// Where it fails the old file serves on.
    fn reopen(&mut self) -> io::Result<()> {
        let new = Self::open(self.path.as_deref())?;
        // A pipe whose reader is away is still the same pipe.
        if new.is_open() || !self.is_open() {
            *self = new;
        }
        Ok(())
    }

    /// What could be written of a line that fails is taken back, or else ended before the next one.
    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.file.is_none() {
            *self = Self::open(self.path.as_deref())?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "nobody reads the pipe"));
        };
        let text = format!("{}{line}\n", if self.torn { "\n" } else { "" });
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(self.fail(text.len() - rest.len(), ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(text.len() - rest.len(), error)),
            }
        }
        self.torn = false;
        Ok(())
    }
}

/// Opens for appending, without waiting for the reader of a named pipe: there is none where the answer is `None`.
fn open(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) => {
            let is_pipe = fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo());
            let no_reader = error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error());
            return if is_pipe && no_reader { Ok(None) } else { Err(error) };
        }
    };
    if file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is a disk"));
    }
    // From here on it is this thread that waits, for a reader that is slow.
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(Some(file))
}

/// Whether somebody died in the middle of a line.
fn ends_within_a_line(file: &File, path: &Path) -> bool {
    let last = || {
        let written = file.metadata().ok().filter(|it| it.is_file() && it.len() > 0)?;
        let mut read = File::open(path).ok()?;
        let same =
            read.metadata().ok().filter(|it| (it.dev(), it.ino()) == (written.dev(), written.ino()))?;
        read.seek(SeekFrom::Start(same.len().checked_sub(1)?)).ok()?;
        let mut byte = [0];
        read.read_exact(&mut byte).ok()?;
        Some(byte[0])
    };
    last().is_some_and(|byte| byte != b'\n')
}

/// Cuts off the bytes that were written last, if nobody has written behind them. Returns whether they are gone.
fn take_back(file: &mut File, bytes: u64) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let end = file.stream_position()?;
    if !metadata.is_file() || metadata.len() != end {
        return Ok(false);
    }
    let Some(before) = end.checked_sub(bytes) else { return Ok(false) };
    file.set_len(before)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn only_its_owner_reads_a_new_log_and_an_old_one_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (new, old, link) =
            (directory.path().join("new"), directory.path().join("old"), directory.path().join("link"));
        fs::write(&old, "before\n").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&old, &link).unwrap();
        for path in [&new, &link] {
            Writer::open(Some(path)).unwrap().write("a").unwrap();
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&new), mode(&old)), (0o600, 0o640));
        assert_eq!((text(&new), text(&old)), ("a\n".to_owned(), "before\na\n".to_owned()));
    }

    #[test]
    fn a_half_line_of_one_who_died_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "whole\nha").unwrap();
        let mut writer = Writer::open(Some(&path)).unwrap();
        writer.write("a").unwrap();
        writer.write("b").unwrap();
        assert_eq!(text(&path), "whole\nha\na\nb\n");
    }

    #[test]
    fn what_was_written_of_a_line_is_taken_back_or_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = Writer::open(Some(&path)).unwrap();
        writer.write("whole").unwrap();
        // As a disk does that fills within a line.
        let half = |writer: &mut Writer| {
            writer.file.as_mut().unwrap().write_all(b"ha").unwrap();
            writer.fail(2, ErrorKind::StorageFull.into())
        };
        assert_eq!(half(&mut writer).kind(), ErrorKind::StorageFull);
        assert_eq!(text(&path), "whole\n");
        // Another writer came behind it: only an end can be put there.
        writer.file.as_mut().unwrap().write_all(b"ha").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"other\n").unwrap();
        writer.fail(2, ErrorKind::StorageFull.into());
        writer.write("next").unwrap();
        assert_eq!(text(&path), "whole\nhaother\n\nnext\n");
        assert!(!writer.torn);
    }

    #[test]
    fn a_pipe_waits_for_no_reader_and_finds_the_one_that_comes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mode = rustix::fs::Mode::from_bits_truncate(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let mut writer = Writer::open(Some(&path)).unwrap();
        assert!(!writer.is_open());
        assert_eq!(writer.write("lost").unwrap_err().kind(), ErrorKind::BrokenPipe);
        writer.reopen().unwrap();
        let reader = || {
            let nonblocking = OFlags::NONBLOCK.bits() as i32;
            OpenOptions::new().read(true).custom_flags(nonblocking).open(&path).unwrap()
        };
        let read = |reader: &mut File| {
            let mut bytes = [0; 64];
            let read = reader.read(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..read]).into_owned()
        };
        let mut first = reader();
        writer.write("one").unwrap();
        assert_eq!(read(&mut first), "one\n");
        drop(first);
        assert_eq!(writer.write("lost").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut second = reader();
        writer.write("two").unwrap();
        assert_eq!(read(&mut second), "two\n");
    }

    #[test]
    fn what_is_no_place_for_a_log_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Writer::open(Some(directory.path())).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert!(Writer::open(Some(&directory.path().join("no/such"))).is_err());
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(Writer::open(Some(&socket)).is_err());
        let mut full = Writer::open(Some(Path::new("/dev/full"))).unwrap();
        assert_eq!(full.write("a").unwrap_err().kind(), ErrorKind::StorageFull);
        Writer::open(Some(Path::new("/dev/null"))).unwrap().write("a").unwrap();
    }
}

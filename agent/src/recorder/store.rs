//! The directory of the recordings: whole files only, no more than so many bytes, the oldest go first.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, fsync, mkdir, open, openat,
    renameat_with, statat, unlinkat,
};

/// How the name of a recording begins,
const BEGIN: &str = "llamaprobe-";
/// and how it ends.
const END: &str = ".journal";
/// The name of what is being written.
const PART: &str = ".llamaprobe.part";

/// A directory that recordings go to.
#[derive(Debug)]
pub struct Store {
    /// Held open: whatever is put in its place is not followed.
    directory: OwnedFd,
    path: PathBuf,
    most_bytes: u64,
}

/// The name of a recording that was made at a time (`20261126T031415.926Z`) for a reason.
pub(super) fn name(time: &str, reason: &str) -> String {
    format!("{BEGIN}{time}-{reason}{END}")
}

impl Store {
    /// Opens the directory, which is made if need be, for up to `most_bytes`. What an agent that was killed had begun to
    /// write is removed.
    ///
    /// # Errors
    ///
    /// When it cannot be made or written, is not ours alone to write, or another agent uses it.
    pub(super) fn open(path: &Path, most_bytes: u64) -> Result<Self> {
        let named = || format!("--record-dir {}", path.display());
        match mkdir(path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                return Err(io::Error::from(error)).with_context(|| format!("{}: cannot be made", named()));
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).map_err(io::Error::from).with_context(|| {
            format!("{}: is no directory that can be opened (a link is not followed)", named())
        })?;
        let state = fstat(&directory).map_err(io::Error::from).with_context(named)?;
        ensure!(
            state.st_uid == rustix::process::geteuid().as_raw() && state.st_mode & 0o022 == 0,
            "{}: others can write there, and could have files written elsewhere: it should belong to the agent's user, with mode 0700",
            named()
        );
        flock(&directory, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .with_context(|| format!("{}: another llamaprobe records there", named()))?;
        let path = path.canonicalize().with_context(named)?;
        let store = Self { directory, path, most_bytes };
        // Nothing may be there.
        let _ = unlinkat(&store.directory, PART, AtFlags::empty());
        store.make_room(0).with_context(named)?;
        Ok(store)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a recording. It is there whole, or not at all, whenever the agent or the machine ends.
    ///
    /// # Errors
    ///
    /// When it is longer than all may be, or cannot be written.
    pub(super) fn write(&self, name: &str, pieces: &[&[u8]]) -> io::Result<()> {
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if length > self.most_bytes {
            let why = format!("{length} bytes are more than --record-megabytes allows");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        self.make_room(length)?;
        let written = self.write_part(pieces).and_then(|()| {
            renameat_with(&self.directory, PART, &self.directory, name, RenameFlags::NOREPLACE)?;
            Ok(fsync(&self.directory)?)
        });
        if written.is_err() {
            let _ = unlinkat(&self.directory, PART, AtFlags::empty());
        }
        written
    }

    fn write_part(&self, pieces: &[&[u8]]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.directory, PART, flags, Mode::RUSR | Mode::WUSR)?);
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        file.sync_all()
    }

    /// Removes the oldest, so that one of this length fits.
    fn make_room(&self, length: u64) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let is_recording = |name: &str| name.starts_with(BEGIN) && name.ends_with(END);
            if let Some(name) = entry.file_name().to_str().ok().filter(|name| is_recording(name))
                && let Ok(state) = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            {
                all.push((name.to_owned(), u64::try_from(state.st_size).unwrap_or(0)));
            }
        }
        // Their names are times.
        all.sort();
        let mut held: u64 = all.iter().map(|(_, size)| size).sum();
        for (name, size) in all {
            if held + length <= self.most_bytes {
                break;
            }
            unlinkat(&self.directory, name.as_str(), AtFlags::empty())?;
            held -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn names(store: &Store) -> Vec<String> {
        let entries = fs::read_dir(store.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_oldest_go_first_and_what_is_not_ours_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("recordings");
        let store = Store::open(&path, 100).unwrap();
        fs::write(path.join("notes"), [0; 500]).unwrap();
        for (second, length) in [(1, 40), (2, 40), (3, 30), (4, 61)] {
            store
                .write(
                    &name(&format!("2026112{second}T000000.000Z"), "gap"),
                    &[&[7; 10], &vec![7; length - 10]],
                )
                .unwrap();
        }
        assert_eq!(
            names(&store),
            [
                "llamaprobe-20261123T000000.000Z-gap.journal",
                "llamaprobe-20261124T000000.000Z-gap.journal",
                "notes"
            ]
        );
        let mode = fs::metadata(path.join(&names(&store)[0])).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = store.write(&name("5", "gap"), &[&[0; 101]]).unwrap_err();
        assert!(error.to_string().contains("--record-megabytes"), "{error}");
        assert!(store.write(&name("20261124T000000.000Z", "gap"), &[&[1]]).is_err(), "none is replaced");
        assert_eq!(names(&store).len(), 3, "nothing half is left");
        drop(store);
        fs::write(path.join(PART), "half").unwrap();
        assert_eq!(
            names(&Store::open(&path, 70).unwrap()),
            ["llamaprobe-20261124T000000.000Z-gap.journal", "notes"]
        );
    }

    #[test]
    fn only_a_directory_of_our_own_is_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = scratch.path().join("link");
        symlink(&real, &link).unwrap();
        fs::write(scratch.path().join("file"), "").unwrap();
        let open = scratch.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let taken = Store::open(&real, 1).unwrap();
        for (name, why) in [
            ("link", "no directory"),
            ("file", "no directory"),
            ("open", "0700"),
            ("a/b", "cannot be made"),
            ("real", "another llamaprobe"),
        ] {
            let message = format!("{:#}", Store::open(&scratch.path().join(name), 1).unwrap_err());
            assert!(message.contains(why) && message.contains("--record-dir"), "{name}: {message}");
        }
        drop(taken);
        Store::open(&real, 1).unwrap();
    }
}

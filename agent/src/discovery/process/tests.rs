use std::os::fd::AsRawFd as _;
use std::{
    net::TcpListener,
    os::unix::{fs::symlink, net::UnixListener},
};

use super::*;

/// A procfs with one process, 7.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = fake.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("7").join(name)
    }

    fn process(&self) -> ProcessRoot {
        ProcessRoot::new(self.0.path(), 7)
    }
}

#[test]
fn maps_are_those_of_files() {
    let fake = Fake::new(&[(
        "maps",
        "00400000-00401000 r-xp 00000000 fe:00 12                                 /srv/a b@1/lib.so\n\
         7f01000-7f02000 r--p 00001000 fe:00 13 /models/new\\012line.gguf (deleted)\n\
         7f02000-7f03000 rw-s 00000000 00:01 14                         /memfd:jit (deleted)\n\
         7f03000-7f04000 rw-p 00000000 00:00 0\n\
         7f04000-7f05000 rw-s 00000000 00:0e 15 anon_inode:i915.gem\n\
         7f05000-7f06000 r-xp 00000000 00:00 0                          [vdso]\n\
         nonsense\n",
    )]);
    let mappings = fake.process().mappings(&Budget::of_a_look()).unwrap();
    let seen: Vec<_> = mappings.iter().map(|m| (m.path.to_str().unwrap(), m.executable, m.deleted)).collect();
    let line = "/models/new\nline.gguf";
    assert_eq!(seen, [("/srv/a b@1/lib.so", true, false), (line, false, true), ("/memfd:jit", false, true)]);
    assert_eq!((mappings[0].start, mappings[0].end), (0x40_0000, 0x40_1000));
    assert_eq!((mappings[0].offset, mappings[1].offset), (0, 0x1000));
    assert_eq!((&*mappings[1].device, mappings[1].inode), ("fe:00", 13));
}

#[test]
fn maps_are_read_as_far_as_the_budget_goes() {
    let line = |n: u64| {
        let (start, end) = (n * 0x1000, (n + 1) * 0x1000);
        format!("{start:x}-{end:x} r-xp 00000000 fe:00 {} /{}/lib{}.so\n", n / 2, "long".repeat(200), n / 2)
    };
    let maps = (1..=65_000).map(line).collect::<String>();
    let fake = Fake::new(&[("maps", &maps)]);
    let budget = Budget::of_a_look();
    let read = fake.process().mappings(&budget).unwrap();
    assert!(budget.is_spent() && (2_000..20_000).contains(&read.len()), "{}", read.len());
    // Two mappings of one file are one, and a real program has less than a thousand files.
    let few = (1..=2000).map(line).collect::<String>();
    let (fake, budget) = (Fake::new(&[("maps", &few)]), Budget::of_a_look());
    assert_eq!((fake.process().mappings(&budget).unwrap().len(), budget.is_spent()), (1000, false));
}

#[test]
fn the_mapped_file_is_found_or_nothing() {
    let fake = Fake::new(&[("root/lib/a.so", "a"), ("real", "r"), ("map_files/x", "")]);
    let inode = |name: &str| std::fs::metadata(fake.path(name)).unwrap().ino();
    let mut mapping = Mapping {
        start: 0x1000,
        end: 0x2000,
        offset: 0,
        device: "fe:00".into(),
        inode: inode("root/lib/a.so"),
        executable: true,
        path: "/lib/a.so".into(),
        deleted: false,
    };
    let found = |mapping: &Mapping| fake.process().file(mapping).map(|file| file.metadata().unwrap().ino());
    assert_eq!(found(&mapping).unwrap(), inode("root/lib/a.so"));
    mapping.inode = inode("real");
    assert!(found(&mapping).is_err(), "not the file that took the name");
    std::fs::rename(fake.path("root/lib/a.so"), fake.path("root/lib/b.so")).unwrap();
    symlink("/real", fake.path("root/lib/a.so")).unwrap();
    assert!(found(&mapping).is_err(), "a link does not leave the root");
    symlink(fake.path("real"), fake.path("exe")).unwrap();
    assert_eq!(found(&mapping).unwrap(), inode("real"));
    symlink(fake.path("root/lib/b.so"), fake.path("map_files/1000-2000")).unwrap();
    assert_eq!(found(&mapping).unwrap(), inode("root/lib/b.so"));
}

#[test]
fn what_is_no_file_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
    for path in [Path::new("/dev/zero"), folder.path(), &folder.path().join("socket")] {
        assert!(open_regular(path).is_err(), "{}", path.display());
    }
    open_regular(&std::env::current_exe().unwrap()).unwrap();
}

#[test]
fn a_named_file_is_opened_with_the_rights_of_the_user() {
    let status =
        |uid: u32| format!("Name:\tx\nUid:\t0\t0\t0\t{uid}\nGid:\t0\t0\t0\t{uid}\nGroups:\t{uid} \n");
    let own = rustix::process::geteuid().as_raw();
    let fake = Fake::new(&[("status", &status(own)), ("root/models/a.gguf", "secret"), ("outside", "x")]);
    symlink(fake.path("root/models"), fake.path("cwd")).unwrap();
    let open = |name: &str| fake.process().named_file(Path::new(name));
    assert!(open("/models/a.gguf").is_ok() && open("/models/b.gguf").is_err());
    symlink(fake.path("outside"), fake.path("root/models/link")).unwrap();
    assert!(open("/models/link").is_err(), "a link does not leave the root");
    if own != 0 {
        return eprintln!("SKIPPED: becoming another user needs root");
    }
    let mode = |name: &str, mode| {
        std::fs::set_permissions(fake.path(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .unwrap();
    };
    for directory in ["", "root", "root/models"] {
        mode(directory, 0o755);
    }
    std::fs::set_permissions(fake.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(fake.path("status"), status(65_534)).unwrap();
    mode("root/models/a.gguf", 0o600);
    assert_eq!(open("/models/a.gguf").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    mode("root/models/a.gguf", 0o644);
    open("/models/a.gguf").unwrap();
    mode("root/models", 0o700);
    assert_eq!(open("/models/a.gguf").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(rustix::process::geteuid().as_raw(), 0, "and is itself again");
    std::fs::read(fake.path("root/models/a.gguf")).unwrap();
}

#[test]
fn identity() {
    let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 100 200";
    let fake = Fake::new(&[
        ("stat", stat),
        ("comm", "llama-server\n"),
        ("cmdline", "llama-server\0-m\0\0"),
        ("environ", "PATHS=/x\0PATH=/bin\0EMPTY=\0"),
        ("status", "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
    ]);
    let process = fake.process();
    assert_eq!((process.start_time().unwrap(), process.is_zombie().unwrap()), (4242, false));
    assert_eq!(process.parent().unwrap(), 1);
    assert_eq!(process.comm().unwrap(), "llama-server");
    assert_eq!(process.command_line().unwrap(), ["llama-server", "-m", ""]);
    assert_eq!(process.environment().get("PATH").as_deref(), Some("/bin"));
    assert_eq!(process.environment().get("EMPTY").as_deref(), Some(""));
    assert_eq!(process.environment().get("PAT"), None);
    assert_eq!(process.seccomp().unwrap(), 2);
    std::fs::write(fake.path("stat"), stat.replace(" S ", " Z ")).unwrap();
    assert!(process.is_zombie().unwrap());
    std::fs::write(fake.path("stat"), "7 (a").unwrap();
    assert_eq!(process.start_time().unwrap_err().kind(), io::ErrorKind::InvalidData);
    let gone = ProcessRoot::new(fake.0.path(), 8).mappings(&Budget::of_a_look()).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    assert!(gone.to_string().contains("8/maps"), "{gone}");
}

#[test]
fn only_own_listeners_count() {
    let fake = Fake::new(&[
        (
            "net/tcp",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 11 1 0\n\
             1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 99 1 0\n\
             2: 0100007F:1F90 0100007F:C000 01 00000000:00000000 00:00000000 00000000  0  0 12 1 0\n",
        ),
        (
            "net/unix",
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0: 00000002 00000000 00010000 0001 01 13 /run/a b.sock\n\
             0: 00000002 00000000 00000000 0001 03 14 /run/a b.sock\n\
             0: 00000002 00000000 00010000 0001 01 15 @abstract\n",
        ),
        ("fd/0", ""),
    ]);
    assert_eq!(fake.process().listeners().unwrap(), []);
    for inode in 11..=15 {
        symlink(format!("socket:[{inode}]"), fake.path(&format!("fd/{inode}"))).unwrap();
    }
    let listeners = fake.process().listeners().unwrap();
    let shown: Vec<_> = listeners.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:8080", "unix:/run/a b.sock", "unix:@abstract"]);
}

#[test]
fn this_process() {
    let process = ProcessRoot::new(Path::new("/proc"), std::process::id());
    let executable = std::env::current_exe().unwrap();
    let mappings = process.mappings(&Budget::of_a_look()).unwrap();
    let own = mappings.iter().find(|mapping| mapping.path == executable && mapping.executable).unwrap();
    let found = process.file(own).unwrap().metadata().unwrap();
    assert_eq!(found.ino(), std::fs::metadata(&executable).unwrap().ino());
    assert_eq!(process.thread_group().unwrap(), std::process::id());
    assert!(process.start_time().unwrap() > 0 && !process.is_zombie().unwrap());
    assert_eq!(process.command_line().unwrap(), std::env::args().collect::<Vec<_>>());
    process.comm().unwrap();
    process.seccomp().unwrap();

    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a socket");
    let _unix = UnixListener::bind(&socket).unwrap();
    let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut expected = vec![Listener::Tcp(v4.local_addr().unwrap()), Listener::Unix(socket)];
    let v6 = TcpListener::bind("[::1]:0");
    match &v6 {
        Ok(v6) => expected.push(Listener::Tcp(v6.local_addr().unwrap())),
        Err(error) => eprintln!("SKIPPED: no IPv6 listener on this host: {error}"),
    }
    let listeners = process.listeners().unwrap();
    for listener in expected {
        assert!(listeners.contains(&listener), "{listener} is not among {listeners:?}");
    }
}

#[test]
fn accepted_connections_are_told_from_those_made() {
    let own = ProcessRoot::new(Path::new("/proc"), std::process::id());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let (accepted_unix, _) = unix.accept().unwrap();
    let at = [Listener::Tcp(listener.local_addr().unwrap()), Listener::Unix(path)];
    let mut found = own.connections(&at).unwrap();
    found.sort_unstable();
    let mut expected =
        vec![(accepted.as_raw_fd(), Some(client.local_addr().unwrap())), (accepted_unix.as_raw_fd(), None)];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(own.connections(&[]).unwrap().is_empty());
}

#[test]
fn anything_goes_in() {
    let lines: [&[u8]; 5] = [
        b"7f01000-7f02000 r-xp 00001000 fe:00 13 /models/new\\012line.gguf (deleted)",
        b"   0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 1",
        b"   0: 00000000000000000000000001000000:2328 00000000000000000000000001000000:A1B2 01 00:0 00:0 0 0 0 4711 1",
        b"0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/llama.sock",
        b"0::/kubepods.slice/kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice/crio-0.scope",
    ];
    crate::fuzz::fuzz("lines of /proc", &lines, |bytes| {
        let _ = (mapping(bytes), file_of(bytes));
        for state in [State::Listening, State::Connected] {
            let _ = (tcp(bytes, state), unix(bytes, state));
        }
        let _ = std::str::from_utf8(bytes).map(container);
    });
}

use std::{fs, process::Command, sync::mpsc};

use super::*;

fn opened(file: &Path) -> Lines {
    Lines::open("lines", Some(file)).unwrap()
}

/// Waits until `done`, and says whether it came to that.
fn soon(done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    done()
}

fn written(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "every line is whole");
    text.lines().map(str::to_owned).collect()
}

/// Those that found no room, and those that could not be written.
fn lost(lines: &Lines) -> [u64; 2] {
    let lost = lines.delivery(Output::Other("lines".into())).lost;
    ["queue_full", "unwritable"].map(|reason| lost.iter().find(|(it, _)| *it == reason).unwrap().1)
}

fn end(mut lines: Lines) -> [u64; 2] {
    lines.close(Instant::now() + Duration::from_secs(30));
    lost(&lines)
}

#[test]
fn what_waits_is_written_at_the_close() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    fs::write(&file, "before\n").unwrap();
    let mut lines = opened(&file);
    (0..QUEUE / 2).for_each(|n| lines.put(&n));
    lines.close(Instant::now() + Duration::from_secs(30));
    lines.put(&9);
    assert_eq!(end(lines), [0, 0]);
    let written = written(&file);
    assert_eq!(written.len(), 1 + QUEUE / 2, "what came after it is no line");
    assert_eq!((written[0].as_str(), written[2].as_str()), ("before", "1"), "the file is continued");
}

#[test]
fn a_file_that_was_rotated_away_goes_on_in_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (file, rotated) = (directory.path().join("log"), directory.path().join("log.1"));
    let lines = opened(&file);
    lines.put(&1);
    assert!(soon(|| written(&file).len() == 1));
    fs::rename(&file, &rotated).unwrap();
    lines.put(&2);
    assert!(soon(|| written(&rotated).len() == 2), "until it is told");
    lines.reopen();
    lines.put(&3);
    assert!(soon(|| written(&file).len() == 1));
    assert_eq!(end(lines), [0, 0]);
    assert_eq!((written(&file).len(), written(&rotated).len()), (1, 2));
}

#[test]
fn a_rotated_file_is_opened_anew_before_the_next_line() {
    let directory = tempfile::tempdir().unwrap();
    let (file, rotated) = (directory.path().join("log"), directory.path().join("log.1"));
    let lines = opened(&file);
    fs::rename(&file, &rotated).unwrap();
    lines.reopen();
    assert!(soon(|| file.exists()), "whoever compresses the old one waits for no line");
    end(lines);
}

/// A file whose first write waits until it is told to go on.
struct Blocked {
    entered: mpsc::Sender<()>,
    go_on: Receiver<()>,
    written: Arc<AtomicU64>,
}

impl Place for Blocked {
    fn write(&mut self, _line: &str) -> io::Result<()> {
        let _ = self.entered.send(());
        // An error once the test has let go.
        let _ = self.go_on.recv();
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_blocked_file_costs_lines_and_no_time() {
    let ((entered, writing), (let_go, go_on)) = (mpsc::channel(), mpsc::channel());
    let (written, shared) = (Arc::new(AtomicU64::new(0)), Arc::new(Shared::default()));
    let blocked = Blocked { entered, go_on, written: written.clone() };
    let (sender, receiver) = sync_channel(QUEUE);
    let of_writer = shared.clone();
    let writer = std::thread::spawn(move || write("lines", &receiver, blocked, &of_writer));
    let mut lines =
        Lines { what: "lines", sender: Some(sender), writer: Some(writer), shared: shared.clone() };

    lines.put(&1);
    writing.recv().unwrap();
    (0..QUEUE + 10).for_each(|n| lines.put(&n));
    assert_eq!(lost(&lines), [10, 0], "the queue is full and one line is in the making");
    let start = Instant::now();
    lines.close(Instant::now() + Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(written.load(Ordering::Relaxed), 0);
    assert_eq!(shared.waiting.load(Ordering::Relaxed), 1 + QUEUE as u64, "so many would be lost");
    drop(let_go);
    assert!(soon(|| written.load(Ordering::Relaxed) == 1 + QUEUE as u64), "none of the rest is lost");
}

#[test]
fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open for both, so that it can be opened at all; never read.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut lines = opened(&pipe);
    let (line, room) = ("x".repeat(600), 1 << 16);
    for _ in 0..QUEUE + room / line.len() + 100 {
        lines.put(&line);
    }
    assert!(lost(&lines)[0] > 0);
    let start = Instant::now();
    lines.close(Instant::now() + Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(reader);
}

#[test]
fn a_file_that_refuses_is_a_loss_and_not_the_end() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Lines::open("lines", Some(directory.path())).is_err(), "not at the start");

    struct Full(u64);
    impl Place for Full {
        fn write(&mut self, _line: &str) -> io::Result<()> {
            self.0 += 1;
            if self.0 <= 2 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn reopen(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, receiver) = sync_channel(QUEUE);
    for _ in 0..5 {
        sender.send(Message::Line(String::new())).unwrap();
    }
    drop(sender);
    let shared = Shared { waiting: AtomicU64::new(5), ..Shared::default() };
    write("lines", &receiver, Full(0), &shared);
    let Shared { failed, waiting, written, .. } = shared;
    assert_eq!([failed, waiting, written].map(AtomicU64::into_inner), [2, 0, 3]);
}

use super::*;

const SOON: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_secs(3600);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn queue(room: u64) -> (Queue<u64>, Arc<Counts>, watch::Sender<bool>, watch::Receiver<bool>) {
    let counts = Arc::new(Counts::default());
    let (closing, closed) = watch::channel(false);
    (Queue::new(room, counts.clone()), counts, closing, closed)
}

#[test]
fn the_oldest_make_room_and_are_counted() {
    let (queue, counts, _closing, mut closed) = queue(10);
    for item in 0..7 {
        queue.push(item, 3);
    }
    assert_eq!((counts.lost(Loss::QueueFull), counts.waiting()), (12, 9));
    let (items, weight) = block_on(queue.next(100, SOON, &mut closed)).unwrap();
    assert_eq!((items, weight), (vec![4, 5, 6], 9));
    counts.export(9);
    assert_eq!((counts.waiting(), counts.exported() + counts.lost_at_all()), (0, 21));
}

#[test]
fn one_that_is_more_than_there_is_room_waits_all_the_same() {
    let (queue, counts, _closing, mut closed) = queue(1);
    queue.push(1, 100);
    queue.push(2, 100);
    assert_eq!(counts.lost(Loss::QueueFull), 100, "a newer one takes its place");
    assert_eq!(block_on(queue.next(1, LATE, &mut closed)), Some((vec![2], 100)));
}

#[test]
fn a_batch_is_sent_when_it_is_full_or_late() {
    let (queue, _counts, _closing, mut closed) = queue(100);
    (0..5).for_each(|item| queue.push(item, 2));
    assert_eq!(block_on(queue.next(4, LATE, &mut closed)), Some((vec![0, 1], 4)), "full");
    assert_eq!(block_on(queue.next(5, LATE, &mut closed)), Some((vec![2, 3], 4)), "three would be more");
    assert_eq!(block_on(queue.next(5, SOON, &mut closed)), Some((vec![4], 2)), "late");
}

#[test]
fn what_waits_is_sent_at_the_end() {
    let (queue, _counts, closing, mut closed) = queue(100);
    queue.push(1, 1);
    closing.send(true).unwrap();
    assert_eq!(block_on(queue.next(5, LATE, &mut closed)), Some((vec![1], 1)));
    assert_eq!(block_on(queue.next(5, LATE, &mut closed)), None);
}

#[test]
fn whoever_waits_is_woken() {
    let (queue, _counts, closing, mut closed) = queue(100);
    block_on(async {
        let (got, ()) = tokio::join!(queue.next(1, LATE, &mut closed), async { queue.push(1, 1) });
        assert_eq!(got, Some((vec![1], 1)));
        let end = async { closing.send(true).unwrap() };
        assert_eq!(tokio::join!(queue.next(1, LATE, &mut closed), end).0, None);
    });
}

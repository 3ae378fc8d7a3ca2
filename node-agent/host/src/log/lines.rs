//! The queue between whoever says a line and the thread that writes it. Nobody but that thread waits for standard error.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::text::plain_but;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{
    Allowance, Origin, Rate,
    budget::{BINDING, Budget},
    lanes::Lanes,
    tell,
};

/// The target of what guests say, at level INFO, and of what is said of that.
const GUEST: &str = "guest";

/// How often it is said what was dropped.
const TELL: Duration = Duration::from_secs(1);

/// What a line has beside its text, in bytes: it counts, too.
const BESIDE: usize = 256;

/// Lines that one binding may write.
const LINES: Rate = Rate { per_second: 100.0, burst: 200.0 };

/// Lines on their way to standard error.
pub struct Lines {
    state: Mutex<State>,
    /// There is something to write, or nothing any more.
    changed: Condvar,
}

struct State {
    lanes: Lanes,
    budget: Budget,
    /// Who has lines that were dropped and not told yet.
    untold: Vec<Arc<Account>>,
    /// A line is being written.
    writing: bool,
    /// The end has come: what was dropped is told now.
    ending: bool,
}

/// What the guests of one origin may write.
pub struct Account {
    origin: Arc<Origin>,
    lines: Arc<Lines>,
    own: Mutex<Own>,
}

struct Own {
    lines: Allowance,
    bytes: Allowance,
    dropped: u64,
}

/// Where `tracing` writes.
pub(super) struct Sink(pub(super) Arc<Lines>);

/// One line, whole at once.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    of_guest: bool,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: &self.0, of_guest: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { lines: &self.0, of_guest: event.target() == GUEST && *event.level() == Level::INFO }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // What tracing does not escape of others' text; of what it writes itself there are colours.
        let shown = String::from_utf8_lossy(line);
        let shown = plain_but(shown.trim_end_matches('\n'), &['\n', '\t', '\u{1b}']);
        // What looks like a line of its own is one.
        let shown = shown.replace('\n', "\n    ") + "\n";
        let mut state = locked(&self.lines.state);
        match self.of_guest {
            true => state.lanes.push_guests(shown.as_bytes()),
            false => state.lanes.push_own(shown.as_bytes()),
        }
        self.lines.changed.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lines {
    /// Starts the thread that writes to `to`.
    pub(crate) fn start(to: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let budget = Budget::new(Instant::now());
        let state = State { lanes: Lanes::default(), budget, untold: Vec::new(), writing: false, ending: false };
        let lines = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() });
        let writer = Arc::clone(&lines);
        thread::Builder::new().name("log".into()).spawn(move || writer.write(to))?;
        Ok(lines)
    }

    /// Writes until the process ends. Who reads standard error may be gone: then lines are lost, and nothing else.
    fn write(&self, mut to: impl Write) {
        let mut next_telling = Instant::now() + TELL;
        let mut state = locked(&self.state);
        loop {
            let now = Instant::now();
            if !state.untold.is_empty() && (state.ending || now >= next_telling) {
                let untold = mem::take(&mut state.untold);
                state.budget.forget(now);
                drop(state);
                untold.iter().for_each(|account| account.tell());
                next_telling = now + TELL;
                state = locked(&self.state);
            }
            let lost = state.lanes.take_lost();
            if lost > 0 {
                drop(state);
                tracing::warn!(dropped = lost, "lines of the log were dropped: whoever reads it is too slow");
                state = locked(&self.state);
            }
            state = match state.lanes.pop() {
                Some(line) => {
                    state.writing = true;
                    drop(state);
                    _ = to.write_all(&line);
                    let mut state = locked(&self.state);
                    state.writing = false;
                    state
                }
                None => {
                    self.changed.notify_all();
                    match state.untold.is_empty() {
                        true => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                        false => {
                            let left = next_telling.saturating_duration_since(now);
                            self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                        }
                    }
                }
            };
        }
    }

    /// Waits until everything is written, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        let mut state = locked(&self.state);
        state.ending = true;
        self.changed.notify_all();
        let unwritten = |state: &mut State| state.writing || !state.lanes.is_empty() || !state.untold.is_empty();
        _ = self.changed.wait_timeout_while(state, within, unwritten);
    }

    /// What guests of `origin` may write.
    pub fn account(self: &Arc<Self>, origin: Arc<Origin>) -> Arc<Account> {
        let now = Instant::now();
        let own = Own { lines: Allowance::new(LINES, now), bytes: Allowance::new(BINDING, now), dropped: 0 };
        Arc::new(Account { origin, lines: Arc::clone(self), own: Mutex::new(own) })
    }
}

impl Account {
    /// Writes a line of a guest, or counts it as dropped.
    pub fn write(self: &Arc<Self>, stream: &'static str, line: &[u8]) {
        if !self.takes_line() {
            return self.drop_line();
        }
        // It must not act on the terminal of whoever reads the log.
        let text = String::from_utf8_lossy(line);
        let text = plain_but(&text, &['\t']);
        match self.takes_bytes(text.len() + BESIDE) {
            true => tell!(target: GUEST, INFO, &self.origin, stream, "{text}"),
            false => self.drop_line(),
        }
    }

    fn takes_line(&self) -> bool {
        let mut own = locked(&self.own);
        let takes = own.lines.has(1.0, Instant::now());
        if takes {
            own.lines.take(1.0);
        }
        takes
    }

    fn takes_bytes(&self, bytes: usize) -> bool {
        let (mut own, now) = (locked(&self.own), Instant::now());
        let mut state = locked(&self.lines.state);
        let queued = state.lanes.of_guests();
        let takes = own.bytes.has(bytes as f64, now) && state.budget.take(self.origin.namespace(), bytes, queued, now);
        if takes {
            own.bytes.take(bytes as f64);
        }
        takes
    }

    fn drop_line(self: &Arc<Self>) {
        let mut own = locked(&self.own);
        own.dropped += 1;
        if own.dropped == 1 {
            locked(&self.lines.state).untold.push(Arc::clone(self));
            self.lines.changed.notify_all();
        }
    }

    /// Says how many lines were dropped.
    fn tell(&self) {
        let dropped = mem::take(&mut locked(&self.own).dropped);
        if dropped > 0 {
            tell!(target: GUEST, WARN, &self.origin, dropped, "lines of the guest were dropped: it wrote too many");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written; so many lines may be yet.
    #[derive(Clone, Default)]
    struct Pipe(Arc<Inner>);

    #[derive(Default)]
    struct Inner {
        state: Mutex<(usize, Vec<u8>)>,
        changed: Condvar,
    }

    impl Pipe {
        fn let_through(&self, lines: usize) {
            locked(&self.0.state).0 += lines;
            self.0.changed.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(locked(&self.0.state).1.clone()).unwrap()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let mut pipe = self.0.changed.wait_while(locked(&self.0.state), |(room, _)| *room == 0).unwrap();
            pipe.0 -= 1;
            pipe.1.extend(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn account(lines: &Arc<Lines>) -> Arc<Account> {
        let origin = Origin { component: "c".parse().unwrap(), part: None, binding: "b".parse().unwrap(), pod: None };
        lines.account(Arc::new(origin))
    }

    /// Lines as `tracing` would write them on this thread, and on the writer's what it says itself.
    fn subscribe(lines: &Arc<Lines>) -> tracing::subscriber::DefaultGuard {
        let format = tracing_subscriber::fmt().json().flatten_event(true).with_writer(Sink(Arc::clone(lines)));
        tracing::subscriber::set_default(format.finish())
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_nobody_and_keeps_what_the_program_says() {
        let pipe = Pipe::default();
        let lines = Lines::start(pipe.clone()).unwrap();
        let _subscribed = subscribe(&lines);
        let account = account(&lines);
        for _ in 0..1_000 {
            account.write("stdout", &[b'x'; 8_000]);
        }
        tracing::warn!("our own line");
        let (waiting, dropped) = (locked(&lines.state).lanes.of_guests(), locked(&account.own).dropped);
        assert!((400_000..1_100_000).contains(&waiting), "{waiting} bytes wait");
        assert!(dropped >= 800, "{dropped} lines were dropped");
        lines.flush(Duration::from_millis(10));
        assert_eq!(pipe.text(), "", "nothing can be written");
        // The first was on its way already.
        pipe.let_through(2);
        let ours = || pipe.text().contains("our own line");
        let end = Instant::now() + Duration::from_secs(60);
        while !ours() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(ours(), "{}", pipe.text().len());
    }

    #[test]
    fn a_guests_line_cannot_act_on_a_terminal() {
        let pipe = Pipe::default();
        pipe.let_through(1_000);
        let lines = Lines::start(pipe.clone()).unwrap();
        let _subscribed = subscribe(&lines);
        account(&lines).write("stdout", b"\ta\x1b]0;b\x07\xff");
        lines.flush(Duration::from_secs(60));
        let line: serde_json::Value = serde_json::from_str(&pipe.text()).unwrap();
        assert_eq!(line["message"], "\ta\u{fffd}]0;b\u{fffd}\u{fffd}");
        assert_eq!((&line["component"], &line["binding"]), (&"c".into(), &"b".into()));
    }
}

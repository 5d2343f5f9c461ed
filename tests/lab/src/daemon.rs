//! A daemon as a process: its log, read as events while it runs; its control socket; signals. Killed on drop.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ctl::client::{Client, Events};
use ctl::control::{Reply, Request};
use ctl::event::Event;
use ctl::observe::{GcksSnapshot, GmSnapshot, GroupView, Snapshot, VpnView};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::LabError;

/// Gets the name of the daemon and each event as it is logged.
pub type Watcher = Arc<dyn Fn(&str, &Event) + Send + Sync>;

/// A place in a log: what is logged later comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    control: PathBuf,
    log: Arc<Log>,
    reader: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    all: Vec<Line>,
    ended: bool,
}

#[derive(Debug)]
struct Line {
    /// For people.
    text: String,
    event: Option<Event>,
}

impl Line {
    /// A line of `--log json`; anything else is kept as text.
    fn read(text: String) -> Line {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(&text) else {
            return Line { text, event: None };
        };
        let word = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let line = format!("{} {:<5} {}: {}", word("time"), word("level"), word("event"), word("message"));
        Line { text: line, event: serde_json::from_value(Value::Object(fields)).ok() }
    }
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &str, stderr: ChildStderr, watcher: Option<&Watcher>) {
        for text in BufReader::new(stderr).lines() {
            let Ok(text) = text else { break };
            let line = Line::read(text);
            if let (Some(watcher), Some(event)) = (watcher, &line.event) {
                watcher(name, event);
            }
            self.lines().all.push(line);
            self.grown.notify_all();
        }
        self.lines().ended = true;
        self.grown.notify_all();
    }
}

impl Daemon {
    /// Starts `command`, a daemon that logs JSON to stderr and serves `control`.
    ///
    /// # Errors
    /// [`LabError::System`] when it cannot be started.
    pub fn start(
        name: &str,
        mut command: Command,
        control: PathBuf,
        watcher: Option<Watcher>,
    ) -> Result<Daemon, LabError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(LabError::system(format!("{name} cannot be started")))?;
        let log = Arc::new(Log::default());
        let reader = child.stderr.take().map(|stderr| {
            let (log, name) = (Arc::clone(&log), name.to_owned());
            std::thread::spawn(move || log.read(&name, stderr, watcher.as_ref()))
        });
        Ok(Daemon { name: name.to_owned(), child, control, log, reader })
    }

    /// The machine it runs on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Its control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Now.
    pub fn mark(&self) -> Mark {
        Mark(self.log.lines().all.len())
    }

    /// Where its log begins.
    pub fn beginning(&self) -> Mark {
        Mark(0)
    }

    /// Everything logged since, as events.
    pub fn events(&self, since: Mark) -> Vec<Event> {
        self.log.lines().all.iter().skip(since.0).filter_map(|line| line.event.clone()).collect()
    }

    /// How many events of that name were logged since.
    pub fn count(&self, since: Mark, name: &str) -> usize {
        self.events(since).iter().filter(|event| event.name() == name).count()
    }

    /// The last lines of its log, for people.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.log.lines();
        let first = lines.all.len().saturating_sub(count);
        lines.all.iter().skip(first).map(|line| line.text.clone()).collect()
    }

    /// Waits for the first event since the mark that `wanted` likes. `what` says it in words for the error.
    ///
    /// # Errors
    /// [`LabError::Late`] after `limit`, [`LabError::Ended`] when the daemon ends first.
    pub fn wait(
        &self,
        since: Mark,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event, LabError> {
        let mut seen = since.0;
        let mut found = None;
        let unfinished = |lines: &mut Lines| {
            let fresh = lines.all.iter().skip(seen).filter_map(|line| line.event.as_ref());
            found = fresh.into_iter().find(|event| wanted(event)).cloned();
            seen = lines.all.len();
            found.is_none() && !lines.ended
        };
        let lines = self.log.lines();
        let (lines, _) = self
            .log
            .grown
            .wait_timeout_while(lines, limit, unfinished)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = lines.ended;
        let last = lines.all.last().map(|line| line.text.clone()).unwrap_or_default();
        drop(lines);
        let (daemon, what) = (self.name.clone(), what.to_owned());
        match found {
            Some(event) => Ok(event),
            None if ended => Err(LabError::Ended { daemon, what, last }),
            None => Err(LabError::Late { daemon, what, seconds: limit.as_secs() }),
        }
    }

    /// Waits for an event by name.
    ///
    /// # Errors
    /// As [`Daemon::wait`].
    pub fn wait_named(&self, since: Mark, limit: Duration, name: &str) -> Result<Event, LabError> {
        self.wait(since, limit, name, |event| event.name() == name)
    }

    /// Waits for what no event tells: `holds` is asked ten times a second.
    ///
    /// # Errors
    /// [`LabError::Late`] after `limit`; what `holds` returns.
    pub fn wait_until(
        &self,
        limit: Duration,
        what: &str,
        mut holds: impl FnMut(&Daemon) -> Result<bool, LabError>,
    ) -> Result<(), LabError> {
        let clock = runtime::clock::Clock::start();
        let end = clock.now().at + limit;
        while !holds(self)? {
            if clock.now().at >= end {
                let (daemon, what) = (self.name.clone(), what.to_owned());
                return Err(LabError::Late { daemon, what, seconds: limit.as_secs() });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Asks over the control socket.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when there is no answer.
    pub fn ask(&self, request: &Request) -> Result<Reply, LabError> {
        Client::connect(&self.control)
            .and_then(|mut client| client.ask(request))
            .map_err(|error| self.wrong(&error))
    }

    /// Events from now on, over the control socket.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when the daemon does not send any.
    pub fn watch(&self) -> Result<Events, LabError> {
        Client::connect(&self.control).and_then(Client::watch).map_err(|error| self.wrong(&error))
    }

    fn wrong(&self, error: &dyn std::fmt::Display) -> LabError {
        LabError::Wrong(format!("{}: {error}", self.name))
    }

    fn snapshot(&self) -> Result<Snapshot, LabError> {
        match self.ask(&Request::Snapshot)? {
            Reply::Snapshot(snapshot) => Ok(*snapshot),
            other => Err(self.wrong(&format!("no snapshot but {other:?}"))),
        }
    }

    /// What the key server shows.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it shows nothing, or is no key server.
    pub fn server(&self) -> Result<GcksSnapshot, LabError> {
        match self.snapshot()? {
            Snapshot::Gcks(server) => Ok(server),
            Snapshot::Gm(_) => Err(self.wrong(&"not a key server")),
        }
    }

    /// What the member shows.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it shows nothing, or is no member.
    pub fn member(&self) -> Result<GmSnapshot, LabError> {
        match self.snapshot()? {
            Snapshot::Gm(member) => Ok(member),
            Snapshot::Gcks(_) => Err(self.wrong(&"not a member")),
        }
    }

    /// The only group of the key server.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it shows none.
    pub fn group(&self) -> Result<GroupView, LabError> {
        self.server()?.groups.into_iter().next().ok_or_else(|| self.wrong(&"shows no group"))
    }

    /// The only VPN of the member.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it shows none.
    pub fn vpn(&self) -> Result<VpnView, LabError> {
        self.member()?.vpns.into_iter().next().ok_or_else(|| self.wrong(&"shows no vpn"))
    }

    /// A field of `/proc/<pid>/status`.
    ///
    /// # Errors
    /// [`LabError`] when it is not there.
    pub fn status(&self, field: &str) -> Result<String, LabError> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).map_err(LabError::system(path))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).ok_or_else(|| self.wrong(&format!("no {field}")))
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|error| self.wrong(&format!("{signal:?} cannot be sent: {error}")))
    }

    /// Stops it in its tracks (SIGSTOP): it neither answers nor notices time.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it is gone.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it is gone.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::CONT)
    }

    /// Lets it read its configuration again (SIGHUP).
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it is gone.
    pub fn reload(&self) -> Result<(), LabError> {
        self.signal(Signal::HUP)
    }

    /// Ends it at once (SIGKILL): nothing is closed, flushed or told.
    pub fn kill(&mut self) {
        self.end();
    }

    /// Ends it in order (SIGTERM): the exit code, if it has one, and its whole log for people.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when it is gone.
    pub fn stop(mut self) -> Result<(Option<i32>, Vec<String>), LabError> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait().map_err(LabError::system("its exit code"))?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok((status.code(), self.tail(usize::MAX)))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shell(script: &str) -> Daemon {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Daemon::start("gm1", command, PathBuf::from("/nonexistent"), None).unwrap()
    }

    #[test]
    fn events_are_found_in_the_log_from_a_mark_on() {
        let script = r#"echo plain >&2
            echo '{"time":"t","level":"info","event":"ack_sent","vpn":"v","seq":3,"message":"acknowledged"}' >&2
            exec sleep 100"#;
        let daemon = shell(script);
        let event = daemon.wait_named(daemon.beginning(), 10 * SECOND, "ack_sent").unwrap();
        assert_eq!(event, Event::AckSent { vpn: "v".to_owned(), seq: 3 });
        assert_eq!(daemon.tail(9), ["plain", "t info  ack_sent: acknowledged"]);
        let late = daemon.wait_named(daemon.mark(), Duration::from_millis(20), "ack_sent").unwrap_err();
        assert!(matches!(late, LabError::Late { .. }), "{late}");
        assert!(daemon.ask(&Request::Version).is_err());
    }

    #[test]
    fn a_daemon_that_ends_is_not_waited_for() {
        let daemon = shell("echo 'gmd: cannot start: no' >&2; exit 3");
        let error = daemon.wait_named(daemon.beginning(), 600 * SECOND, "started").unwrap_err().to_string();
        assert_eq!(
            error,
            "gm1 ended while this was waited for: started; its last line: gmd: cannot start: no"
        );
    }
}

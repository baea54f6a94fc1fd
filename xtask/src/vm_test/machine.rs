//! An emulated machine: QEMU, its control channel (QMP), the guest's control line and its console.
use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::kernel::Kernel;
use crate::process::{done, output};

const QEMU: &str = "qemu-system-x86_64";

/// How long a guest may take to boot, and a job to run. Emulation beside a build is slow.
const BOOT_MAX: Duration = Duration::from_secs(600);
const JOB_MAX: Duration = Duration::from_secs(1500);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The machine: a plain processor, no devices that would be probed. `tcg` always: see the head of the module above.
///
/// Two processors that take turns on one thread of the host. With a thread for each, QEMU before 8.1 reads code for
/// translation without the lock that those who write code take: a guest's kernel that patches itself (jump labels, as when
/// the accounting of BPF programs is switched on) then meets its own breakpoint after it has removed it, "Oops: int3".
/// (QEMU commit deba78709ae8, "accel/tcg: Always lock pages before translation"; Debian 12 has 7.2.) Where one processor
/// runs at a time, nobody writes while another one reads.
const SHAPE: &str = "-M q35,sata=off,smbus=off,i8042=off -accel tcg,thread=single,tb-size=512 \
    -cpu qemu64,-svm,+rdrand -smp 2 -m 1280 -nodefaults -no-user-config -display none -no-reboot";

/// The kernel's command line. A soft lock-up is one after two minutes (twice the threshold): a host that is busy with
/// other things must not look like one.
const COMMAND_LINE: &str = "rw quiet loglevel=4 console=ttyS0 panic=-1 oops=panic nokaslr mitigations=off \
    no_timer_check tsc=reliable random.trust_cpu=on audit=0 net.ifnames=0 systemd.show_status=0 watchdog_thresh=60";

/// Lines on the console after which nothing that the guest says counts.
const FATAL: [&str; 6] =
    ["Kernel panic", "soft lockup", "hard LOCKUP", "BUG: ", "Oops: ", "general protection fault"];

/// What a frozen guest depends on besides its disk.
pub(super) fn shape() -> String {
    format!("{SHAPE} {COMMAND_LINE}")
}

/// A directory for a run. Sockets in it need a short path, so it is not in the cache.
pub(super) fn scratch(what: &str) -> Result<PathBuf> {
    let path = env::temp_dir().join(format!("standin-vm-{what}-{}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Which QEMU this is: a frozen guest is thawed by the one that froze it only.
pub(super) fn version() -> Result<String> {
    output(Command::new(QEMU).arg("--version"))
}

/// A running QEMU; killed when this goes out of scope.
pub(super) struct Machine {
    name: &'static str,
    qemu: Child,
    control: Control,
    line: UnixStream,
    heard: Vec<u8>,
    scratch: PathBuf,
    until: Instant,
}

impl Machine {
    /// Boots the guest on `directory/disk` and freezes it when it is up: its memory becomes `directory/state`, and the
    /// disk stays as it is then.
    pub(super) fn freeze(kernel: &'static Kernel, directory: &Path) -> Result<()> {
        let scratch = scratch(kernel.name)?;
        let mut machine = Self::start(kernel, directory, &scratch, Begin::ToFreeze)?;
        println!("Linux {}: {}", kernel.name, machine.wait_until_up()?);
        sleep(Duration::from_secs(1));
        machine.ask("stop", &json!({}))?;
        machine.ask("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
        let state = directory.join("state");
        machine.ask("migrate", &json!({ "uri": format!("exec:cat > {}", state.display()) }))?;
        loop {
            match machine.ask("query-migrate", &json!({}))?["status"].as_str() {
                Some("completed") => break,
                Some("failed") => bail!("the guest can't be frozen"),
                _ => sleep(LOOK),
            }
        }
        machine.ask("quit", &json!({}))?;
        machine.qemu.wait()?;
        Ok(fs::remove_dir_all(scratch)?)
    }

    /// Thaws the guest of `directory`, with the job disk made of `scratch/payload`. Nothing is written to it.
    pub(super) fn thaw(kernel: &'static Kernel, directory: &Path, scratch: &Path) -> Result<Self> {
        let mut machine = Self::start(kernel, directory, scratch, Begin::Thaw)?;
        machine.until = Instant::now() + JOB_MAX;
        while machine.ask("query-status", &json!({}))?["status"] == "inmigrate" {
            machine.look_at_console()?;
            sleep(LOOK);
        }
        machine.ask("cont", &json!({}))?;
        Ok(machine)
    }

    /// Boots the disk `scratch/disk` with the kernel of `directory`, with everything written to it logged in
    /// `scratch/log` (`write_log`).
    pub(super) fn boot(kernel: &'static Kernel, directory: &Path, scratch: &Path) -> Result<Self> {
        let mut machine = Self::start(kernel, directory, scratch, Begin::Boot)?;
        let state = machine.wait_until_up()?;
        println!("{:>4} | booted: {state}", machine.name);
        machine.until = Instant::now() + JOB_MAX;
        Ok(machine)
    }

    /// Waits until the guest waits for its job; gives what it says of itself.
    fn wait_until_up(&mut self) -> Result<String> {
        loop {
            if let Some(ready) = self.hear()?.as_deref().and_then(|line| line.strip_prefix("@@guest ready "))
            {
                return Ok(ready.to_owned());
            }
        }
    }

    fn start(kernel: &'static Kernel, directory: &Path, scratch: &Path, begin: Begin) -> Result<Self> {
        let job = scratch.join("job.img");
        File::create(&job)?.set_len(256 << 20)?;
        if begin != Begin::ToFreeze {
            let mut make = Command::new("mke2fs");
            make.args(["-q", "-F", "-t", "ext2", "-m", "0", "-b", "4096", "-O", "^resize_inode"]);
            done(make.args(["-E", "lazy_itable_init=1", "-d"]).args([&scratch.join("payload"), &job]))?;
        }
        let out = scratch.join("out.img");
        File::create(&out)?.set_len(64 << 20)?;
        let mut qemu = Command::new(QEMU);
        qemu.args(SHAPE.split_whitespace());
        qemu.arg("-kernel").arg(directory.join("kernel/vmlinux"));
        qemu.arg("-initrd").arg(directory.join("kernel/initramfs"));
        qemu.args(["-append", COMMAND_LINE]);
        qemu.arg("-serial").arg(format!("file:{}", scratch.join("console").display()));
        let line = scratch.join("line");
        qemu.arg("-chardev").arg(format!("socket,id=line,path={},server=on,wait=off", line.display()));
        qemu.args(["-serial", "chardev:line"]);
        let control = scratch.join("qmp");
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        let root = directory.join("disk");
        match begin {
            Begin::ToFreeze => drive(&mut qemu, "root", &root, "snapshot=off"),
            Begin::Thaw => drive(&mut qemu, "root", &root, "snapshot=on"),
            Begin::Boot => logged_drive(&mut qemu, "root", scratch),
        }
        drive(&mut qemu, "job", &job, "readonly=on");
        drive(&mut qemu, "out", &out, "readonly=off");
        for name in ["root", "job", "out"] {
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        if begin == Begin::Thaw {
            qemu.arg("-incoming").arg(format!("exec:cat {}", directory.join("state").display()));
        }
        let log = File::create(scratch.join("qemu.log"))?;
        qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = qemu.spawn().with_context(|| format!("failed to start {QEMU}"))?;
        let connected = connect(&mut qemu, &control).and_then(|qmp| {
            let line = connect(&mut qemu, &line)?;
            line.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok((Control::begin(qmp)?, line))
        });
        let (control, line) = connected.inspect_err(|_| {
            _ = qemu.kill();
            println!("{}", fs::read_to_string(scratch.join("qemu.log")).unwrap_or_default());
        })?;
        let until = Instant::now() + BOOT_MAX;
        Ok(Self { name: kernel.name, qemu, control, line, heard: Vec::new(), scratch: scratch.into(), until })
    }

    /// A command to QEMU and its answer; says how QEMU ended if it is gone.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.control.ask(command, arguments).map_err(|error| {
            sleep(LOOK);
            let ended = self.qemu.try_wait().ok().flatten().map_or("running".into(), |end| end.to_string());
            error.context(format!("{QEMU}: {ended}\n{}", self.last_words()))
        })
    }

    /// Has the guest run its job.
    pub(super) fn go(&mut self) -> Result<()> {
        let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
        Ok(writeln!(self.line, "go {now:.3} {}", JOB_MAX.as_secs())?)
    }

    /// What the guest says next, if it says something soon. What is for people is printed.
    pub(super) fn listen(&mut self) -> Result<Option<Word>> {
        let Some(line) = self.hear()? else { return Ok(None) };
        if let Some(code) = line.strip_prefix("@@guest ended ") {
            return Ok(Some(Word::Ended(code.trim().parse()?)));
        }
        if let Some(seen) = line.strip_prefix("@@seen ") {
            return Ok(Some(Word::Seen(seen.to_owned())));
        }
        println!("{:>4} | {line}", self.name);
        Ok(None)
    }

    /// Has the guest run its job to its end; gives the exit code.
    pub(super) fn run_to_its_end(&mut self) -> Result<i32> {
        self.go()?;
        loop {
            if let Some(Word::Ended(code)) = self.listen()? {
                return Ok(code);
            }
        }
    }

    /// Has the guest run its job; gives the exit code, and lays what it left in `/out` into `reports`.
    pub(super) fn run(mut self, reports: &Path) -> Result<i32> {
        let code = self.run_to_its_end()?;
        self.look_at_console()?;
        self.ask("quit", &json!({}))?;
        self.qemu.wait()?;
        ensure!(code != 125, "the guest could not run its job");
        fs::create_dir_all(reports)?;
        done(Command::new("tar").arg("-xf").arg(self.scratch.join("out.img")).arg("-C").arg(reports))?;
        fs::copy(self.scratch.join("console"), reports.join("console"))?;
        Ok(code)
    }

    /// The next line that the guest says, if it says one soon.
    fn hear(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let mut buffer = [0; 65536];
            match self.line.read(&mut buffer) {
                Ok(0) => bail!("the guest is gone\n{}", self.last_words()),
                Ok(count) => self.heard.extend_from_slice(&buffer[..count]),
                Err(_) => {
                    self.look_at_console()?;
                    ensure!(Instant::now() < self.until, "the guest took too long\n{}", self.last_words());
                    return Ok(None);
                }
            }
        }
    }

    /// Fails if the kernel has said that it is done for.
    fn look_at_console(&self) -> Result<()> {
        let console = fs::read(self.scratch.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let fatal = console.lines().find(|line| FATAL.iter().any(|sign| line.contains(sign)));
        ensure!(fatal.is_none(), "the guest's kernel: {}\n{}", fatal.unwrap_or_default(), self.last_words());
        Ok(())
    }

    fn last_words(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read(self.scratch.join(name)).unwrap_or_default();
            let begin = text.len().saturating_sub(4000);
            String::from_utf8_lossy(&text[begin..]).into_owned()
        };
        format!("console:\n{}\nqemu:\n{}", tail("console"), tail("qemu.log"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        _ = self.qemu.kill();
        _ = self.qemu.wait();
    }
}

/// How a machine comes to life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    ToFreeze,
    Thaw,
    Boot,
}

/// What a guest's job says to the host.
pub(super) enum Word {
    /// It has seen something.
    Seen(String),
    /// It has ended, with this exit code.
    Ended(i32),
}

/// A disk that need not survive the host: what the guest flushes is in the host's memory.
fn drive(qemu: &mut Command, name: &str, file: &Path, options: &str) {
    let file = file.display();
    qemu.arg("-drive").arg(format!("if=none,id={name},file={file},format=raw,cache=unsafe,{options}"));
}

/// The disk `scratch/disk` with a log of writes and flushes in `scratch/log`. The guest sees a disk with a volatile cache
/// (virtio-blk's `write-cache`, on by default), so it asks for the flushes that it relies on.
fn logged_drive(qemu: &mut Command, name: &str, scratch: &Path) {
    for file in ["disk", "log"] {
        let path = scratch.join(file);
        let path = path.display();
        qemu.arg("-blockdev");
        qemu.arg(format!("driver=file,node-name={file},filename={path},cache.no-flush=on"));
    }
    qemu.arg("-blockdev").arg(format!("driver=blklogwrites,node-name={name},file=disk,log=log"));
}

fn connect(qemu: &mut Child, path: &Path) -> Result<UnixStream> {
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            return Ok(stream);
        }
        if let Some(ended) = qemu.try_wait()? {
            bail!("{QEMU} did not start: {ended}");
        }
        sleep(LOOK);
    }
}

/// QMP: a line of JSON each way.
struct Control {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// The last thing that QEMU said by itself: a guest that ends says why here.
    event: Value,
}

impl Control {
    fn begin(stream: UnixStream) -> Result<Self> {
        let from = BufReader::new(stream.try_clone()?);
        let mut control = Self { from, to: stream, event: Value::Null };
        control.receive()?;
        control.ask("qmp_capabilities", &json!({}))?;
        Ok(control)
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.from.read_line(&mut line)?;
        ensure!(count > 0, "QEMU is gone; its last event was {}", self.event);
        Ok(serde_json::from_str(&line)?)
    }

    /// A command and its answer. Where QEMU is gone already, what it said before is read all the same.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let asked = writeln!(self.to, "{}", json!({ "execute": command, "arguments": arguments }));
        loop {
            let mut answer = self.receive()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                asked?;
                return Ok(answer["return"].take());
            }
            self.event = answer;
        }
    }
}

//! A GiB of weights to the stage and back, plainly and through the emulator: `cargo bench -p firn-stage --features emulate`.
//!
//! Both copies read and write chunks of 8 MiB, sync and close. They take turns, and the medians count: a disk is not as
//! fast in one second as in the next. Before each copy the disk is idle, so that none pays for the file that the last one
//! removed. There and back the emulator must reach 70 %. It needs two idle cores: the plain copy uses one.
//! `FIRN_BENCH_DIR` names the folder (default: the one for temporary files), `FIRN_BENCH_MIB` the size.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use firn_stage::{
    Stage, WRITE_CHUNK,
    emulate::{self, Options},
};

const ROUNDS: usize = 11;
const FLOOR: f64 = 0.7;

/// Copies a file and returns how many MiB a second that was.
fn copy(from: &Path, to: &Path) -> f64 {
    rustix::fs::sync();
    let begin = Instant::now();
    let (mut source, mut target) = (File::open(from).unwrap(), File::create(to).unwrap());
    let (mut chunk, mut size) = (vec![0; WRITE_CHUNK], 0);
    loop {
        let read = source.read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        target.write_all(&chunk[..read]).unwrap();
        size += read;
    }
    target.sync_all().unwrap();
    drop(target);
    let rate = mib(size) / begin.elapsed().as_secs_f64();
    fs::remove_file(to).unwrap();
    rate
}

#[expect(clippy::cast_precision_loss, reason = "a few GiB")]
fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Compares copies, and returns how many MiB a second the plain one makes, and the other.
fn compare(name: &str, plain: [&Path; 2], emulated: [&Path; 2]) -> [f64; 2] {
    let copies = |_| (copy(plain[0], plain[1]), copy(emulated[0], emulated[1]));
    let (plain_rates, emulated_rates) = (0..ROUNDS).map(copies).unzip();
    let (plain, emulated) = (median(plain_rates), median(emulated_rates));
    println!("{name}: plain {plain:.0} MiB/s, emulated {emulated:.0} MiB/s, ratio {:.2}", emulated / plain);
    [plain, emulated]
}

fn main() -> ExitCode {
    let dir = env::var_os("FIRN_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    let size = env::var("FIRN_BENCH_MIB").map_or(1024, |mib| mib.parse().unwrap()) << 20;
    let dir = tempfile::tempdir_in(dir).unwrap();
    let at = |name: &str| dir.path().join(name);
    let weights: Vec<u8> = (0..size as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    fs::write(at("weights"), weights).unwrap();

    let mounted = match emulate::mount(&at("stage"), &at("mount"), &Options::default()) {
        Ok(mounted) => mounted,
        Err(error) => {
            eprintln!("skipped: {error}");
            return ExitCode::SUCCESS;
        }
    };
    fs::create_dir(at("plain")).unwrap();
    let there =
        compare("to the stage", [&at("weights"), &at("plain/w")], [&at("weights"), &mounted.mountpoint().join("w")]);
    fs::rename(at("weights"), at("stage/weights")).unwrap();
    let back = compare(
        "from the stage",
        [&at("stage/weights"), &at("plain/w")],
        [&mounted.mountpoint().join("weights"), &at("plain/w")],
    );

    // What Firn does: it hashes what it writes.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for (name, root) in [("plain", at("plain")), ("emulated", mounted.mountpoint().to_owned())] {
        let stage = Stage::open(root.to_str().unwrap()).unwrap();
        let begin = Instant::now();
        runtime.block_on(stage.put_file("put", &at("stage/weights"))).unwrap();
        println!("Stage::put_file, {name}: {:.0} MiB/s", mib(size) / begin.elapsed().as_secs_f64());
    }
    mounted.unmount().unwrap();
    let [plain, emulated] = [0, 1].map(|copy| 1.0 / there[copy] + 1.0 / back[copy]);
    println!("there and back: ratio {:.2}", plain / emulated);
    if plain / emulated < FLOOR {
        eprintln!("the emulator must reach {FLOOR} of a plain copy's speed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

//! Not part of this state of the tree yet; says so and fails.

fn main() -> std::process::ExitCode {
    eprintln!("gdoi-lab: this program is not built yet; see README.md, section Status");
    std::process::ExitCode::from(3)
}

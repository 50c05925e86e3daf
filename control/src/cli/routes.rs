//! `braid routes`.

use std::{net::IpAddr, process::ExitCode};

use ipnet::IpNet;

use super::{
    FAILED, RunDir,
    ask::{ask, print},
    status::{align, way},
};
use crate::{
    admin::Request,
    bgp::{PathView, RouteAnswer},
    status::{Asked, Routes},
};

/// Shows routes, where they come from, and why BGP has chosen as it did.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
With a prefix: that one and all within it; with an address: the route that a packet takes. Exits with 1
when there is none.

Examples: braid routes
          braid routes 10.2.0.0/16 --why
          braid routes 10.2.0.5")]
pub(super) struct Args {
    /// Prefix or address [default: all routes]
    #[arg(value_name = "PREFIX", value_parser = asked)]
    asked: Option<Asked>,
    /// All paths that neighbors sent, and what became of each
    #[arg(long)]
    why: bool,
    /// Print one JSON document and nothing else
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

fn asked(text: &str) -> Result<Asked, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Asked::Address(address));
    }
    let net =
        text.parse::<IpNet>().map_err(|_| "write a prefix like 10.2.0.0/16, or an address".to_owned())?;
    Ok(Asked::Prefix(net.trunc()))
}

pub(super) fn run(args: &Args) -> ExitCode {
    let request = Request::Routes { asked: args.asked, why: args.why };
    let value = match ask(&args.run_dir.path, &request) {
        Ok(value) => value,
        Err(code) => return code,
    };
    let routes: Routes = match serde_json::from_value(value.clone()) {
        Ok(routes) => routes,
        Err(error) => {
            eprintln!("braid: the gateway is of another version: {error}");
            return ExitCode::from(FAILED);
        }
    };
    print(&if args.json { format!("{value}\n") } else { text(&routes) });
    let nothing = routes.routes.is_empty() && routes.why.is_empty() && args.asked.is_some();
    if nothing { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn text(routes: &Routes) -> String {
    let mut rows = vec![["ROUTE", "ORIGIN", "PATHS"].map(str::to_owned)];
    for route in &routes.routes {
        let path = |path: &crate::status::Path| {
            let weight = if path.weight == 1 { String::new() } else { format!(" x{}", path.weight) };
            format!("{}{weight}{}", way(path), if path.active { "" } else { " (idle)" })
        };
        let paths = route.paths.iter().map(path).collect::<Vec<_>>().join(", ");
        rows.push([route.prefix.clone(), route.origin.clone(), paths]);
    }
    let mut text = align(&rows);
    if routes.left_out > 0 {
        text.push_str(&format!("and {} more\n", routes.left_out));
    }
    for answer in &routes.why {
        text.push_str(&why(answer));
    }
    text
}

fn why(answer: &RouteAnswer) -> String {
    let titles = ["NEIGHBOR", "NEXT HOP", "AS PATH", "MED", "PREF", "COMMUNITIES", "WHY"];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(answer.paths.iter().map(path_row));
    format!("\n{}\n{}", answer.prefix, align(&rows))
}

fn path_row(path: &PathView) -> [String; 7] {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let words = |words: Vec<String>| if words.is_empty() { "-".to_owned() } else { words.join(" ") };
    let stale = if path.stale { " (stale)" } else { "" };
    [
        path.neighbor.clone(),
        path.next_hop.to_string(),
        words(path.as_path.iter().map(u32::to_string).collect()),
        number(path.med),
        number(path.local_pref),
        words(path.communities.clone()),
        format!("{}{stale}", path.why),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_addresses_are_told_apart() {
        assert_eq!(asked("10.2.0.5"), Ok(Asked::Address("10.2.0.5".parse().unwrap())));
        assert_eq!(asked("10.2.0.5/16"), Ok(Asked::Prefix("10.2.0.0/16".parse().unwrap())));
        assert!(asked("ten").is_err());
    }

    #[test]
    fn a_reason_stands_behind_every_path() {
        let path = |neighbor: &str, chosen, why: &str| PathView {
            neighbor: neighbor.to_owned(),
            next_hop: "169.254.10.1".parse().unwrap(),
            as_path: vec![64_512, 65_000],
            med: Some(100),
            local_pref: None,
            communities: Vec::new(),
            stale: false,
            chosen,
            why: why.to_owned(),
        };
        let answer = RouteAnswer {
            prefix: "10.2.0.0/16".to_owned(),
            paths: vec![path("a", true, "best"), path("b", false, "higher MED from the same AS")],
        };
        let text = why(&answer);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "10.2.0.0/16");
        assert_eq!(lines[3], "a         169.254.10.1  64512 65000  100  -     -            best");
        assert!(lines[4].ends_with("higher MED from the same AS"), "{text}");
    }
}

#!/usr/bin/env bash
# What the tests need beside `.venv`, from Debian: PostgreSQL's programs, Chromium and Prometheus. Installs what is missing where it can (as root, or by
# sudo without a password); where it cannot it says so in one sentence, and the tests that need them fail with another.
set -euo pipefail

missing=()
command -v initdb >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v prometheus >/dev/null || missing+=(prometheus)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "tests: ${missing[*]} missing, and this is no Debian: install PostgreSQL (initdb), Chromium (chromium) and Prometheus (prometheus) yourself." >&2
    exit 0
fi
become=()
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "tests: ${missing[*]} missing, and only root can install: run sudo apt-get install ${missing[*]}" >&2
        exit 0
    fi
    become=(sudo)
fi
install=("${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
echo "tests: installing ${missing[*]}"
# the lists of packages may be missing or old
"${install[@]}" >/dev/null 2>&1 || { "${become[@]}" apt-get update -qq && "${install[@]}" >/dev/null; } ||
    echo "tests: ${missing[*]} could not be installed; run apt-get install ${missing[*]} and see why." >&2

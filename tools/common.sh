# What quickstart and check share. To be sourced by bash, from the root of the repository.

die() { echo "error: $*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "namespaces, containers and eBPF need root: run  sudo $0 $*"
}

# Debian packages that are missing are installed; nothing is touched when all are there.
# Arguments: PACKAGE=PATH-OR-COMMAND, where the second tells whether the package is needed.
need_packages() {
    local missing=() entry package sign
    for entry in "$@"; do
        package=${entry%%=*} sign=${entry#*=}
        case $sign in
            /*) [ -e "$sign" ] || missing+=("$package") ;;
            *) PATH=$PATH:/usr/sbin:/sbin command -v "$sign" >/dev/null || missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    echo "installing Debian packages: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

RUN_PACKAGES=(containerd=containerd runc=runc nftables=nft iproute2=ip kmod=modprobe ca-certificates=/etc/ssl/certs)
BUILD_PACKAGES=(gcc=cc libc6-dev=/usr/include/stdio.h clang=clang libbpf-dev=/usr/include/bpf/bpf_helpers.h
    protobuf-compiler=protoc libprotobuf-dev=/usr/include/google/protobuf/empty.proto)

# Sets `invoker`, `CARGO_HOME` and `PATH` so that `cargo` is the one of whoever called sudo.
find_cargo() {
    invoker=${SUDO_USER:-root}
    local home
    home=$(getent passwd "$invoker" | cut -d: -f6)
    local place
    for place in "${CARGO_HOME:-$home/.cargo}/bin" "$home/.cargo/bin" /root/.cargo/bin; do
        if [ -x "$place/cargo" ]; then
            export PATH=$place:$PATH
            [ "$place" = "$home/.cargo/bin" ] || invoker=root
            [ "$invoker" = root ] || export CARGO_HOME=$home/.cargo RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
            return
        fi
    done
    command -v cargo >/dev/null || die "no cargo found for $invoker: install Rust from https://rustup.rs"
}

# Runs a build step as the invoking user, so that nothing in the checkout becomes root's.
as_invoker() {
    if [ "$invoker" = root ]; then "$@"; else runuser -u "$invoker" -- "$@"; fi
}

# find_docker_client SCRATCH: the real docker client in PATH. Where there is none, only the client is taken
# out of Debian's package: installing it would start Docker's own daemon.
find_docker_client() {
    local scratch=$1 tools package=docker.io
    tools=$(target_dir)/tools
    export PATH=$PATH:$tools:/usr/sbin
    command -v docker >/dev/null && return
    apt-cache show docker-cli >/dev/null 2>&1 && package=docker-cli
    echo "fetching the docker client from Debian's $package"
    apt-get update -qq
    (cd "$scratch" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb unpacked)
    mkdir -p "$tools"
    cp "$scratch/unpacked/usr/bin/docker" "$tools/docker"
}

# test_containerd SCRATCH: the containerd that tests use: the one SHOAL_E2E_CONTAINERD names, the
# machine's, or one of their own.
test_containerd() {
    export SHOAL_E2E_CONTAINERD=${SHOAL_E2E_CONTAINERD:-/run/containerd/containerd.sock}
    containerd_answers "$SHOAL_E2E_CONTAINERD" && return
    start_containerd "$1"
    export SHOAL_E2E_CONTAINERD=$1/containerd.sock
}

target_dir() { echo "${CARGO_TARGET_DIR:-$PWD/target}"; }

containerd_answers() { timeout 5 ctr --address "$1" version >/dev/null 2>&1; }

# start_containerd DIRECTORY: a containerd of our own with everything below DIRECTORY; waits until it
# answers at DIRECTORY/containerd.sock and leaves its pid in DIRECTORY/containerd.pid.
start_containerd() {
    local dir=$1
    mkdir -p "$dir"
    cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd-root"
state = "$dir/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/containerd.sock"
TOML
    setsid containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 </dev/null 3>&- &
    echo $! >"$dir/containerd.pid"
    wait_for 20 "containerd (see $dir/containerd.log)" containerd_answers "$dir/containerd.sock"
}

# wait_for SECONDS WHAT COMMAND…: polls until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || die "not ready in time: $what"
        sleep 0.1
    done
}

# end_process PIDFILE WORD: ends the process in PIDFILE, if it still is one whose command line has WORD.
end_process() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    rm -f "$1"
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "$2" || return 0
    kill "$pid" 2>/dev/null || return 0
    local deadline=$((SECONDS + 30))
    while [ -e "/proc/$pid" ] && [ "$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null)" != Z ]; do
        [ $SECONDS -lt $deadline ] || { kill -9 "$pid" 2>/dev/null || true; break; }
        sleep 0.1
    done
}

#!/usr/bin/env bash
# One job over several hosts, each a network namespace with an address, a name and file systems of its own:
#
#   data 10.77.0.1    controllers, queues, version stores      trainer 10.77.0.3     learner and scorer
#   api 10.77.0.2     REST, with the data host's disk          sampler1 10.77.0.11, sampler2 10.77.0.12 and so on
#
# While the job runs, the link of one sampler is down for a minute and comes back, and that of the trainer; then the other sampler's host goes
# away for good. The job must succeed, and every group must be accounted for. A host has only what its role needs: samplers the policy's folder, no prompts.
#
#   sudo deploy/hosts-trial.sh                 # about ten minutes on two cores; .venv must be there (make setup)
#
#   TRIAL_MODELS   Sparring's home with the demo's world, which is built there where it is missing. Default: a new folder
#   TRIAL_ROUNDS   rounds of self-play. Default: 6
#   TRIAL_SAMPLERS hosts with a sampler, and samplers of the job. Default: 2
#   TRIAL_CALM     not empty: nothing fails; what syncs cost is told all the same
#   TRIAL_KEEP     not empty: the hosts' files stay
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
source deploy/trial.sh

[[ $EUID == 0 ]] || die "network namespaces are made by root; run it with sudo."
need ip unshare curl jq
[[ -x .venv/bin/sparring ]] || die "there is no .venv; run make setup first."

work=$(mktemp -d)
models=$(realpath -m "${TRIAL_MODELS:-$work/models}")
mkdir -p "$models" "$work"/{home,log}
lan=sparring-lan
samplers=${TRIAL_SAMPLERS:-2}
[[ -n ${TRIAL_CALM:-} ]] || ((samplers > 1)) || die "TRIAL_SAMPLERS=$samplers: one of them goes away; make it 2 or more, or set TRIAL_CALM."
declare -A address=([data]=10.77.0.1 [api]=10.77.0.2 [trainer]=10.77.0.3)
for ((number = 1; number <= samplers; number++)); do address[sampler$number]=10.77.0.$((10 + number)); done
declare -A loop=()
token=$work/token
head -c 32 /dev/urandom | base64 | tr -d '\n' >"$token"
KEY=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
URL=http://${address[api]}:8700

# End what runs on a host, and what would start it again.
gone() {
    [[ -z ${loop[$1]:-} ]] || kill -9 "${loop[$1]}" 2>/dev/null || true
    local pids
    while pids=$(ip netns pids "sparring-$1" 2>/dev/null) && [[ -n $pids ]]; do
        kill -9 $pids 2>/dev/null || true
        sleep 0.2
    done
}

finish() {
    local name
    for name in "${!address[@]}"; do
        gone "$name"
        ip netns del "sparring-$name" 2>/dev/null || true
        rm -rf "/etc/netns/sparring-$name"
    done
    ip netns del $lan 2>/dev/null || true
    if [[ ${TRIAL_KEEP:-} ]]; then say "its files stay in $work"; else rm -rf "$work"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM

network() {
    local name
    ip netns add $lan
    ip -n $lan link add lan type bridge
    ip -n $lan link set lan up
    for name in "${!address[@]}"; do
        ip netns add "sparring-$name"
        ip -n $lan link add "$name" type veth peer name eth0 netns "sparring-$name"
        ip -n $lan link set "$name" master lan up
        ip -n "sparring-$name" link set lo up
        ip -n "sparring-$name" address add "${address[$name]}/24" dev eth0
        ip -n "sparring-$name" link set eth0 up
        mkdir -p "/etc/netns/sparring-$name"
        printf '127.0.0.1 localhost\n%s %s\n' "${address[$name]}" "$name" >"/etc/netns/sparring-$name/hosts"
    done
}

# host NAME "FOLDERS" PART...: a host that runs a part of the image (deploy/entrypoint.sh) and starts it again when it ends, as a service manager
# would. Of $models it has the FOLDERS, or all with `all`; but for api and data its $work/home is empty and its own.
host() {
    local name=$1 folders=$2
    (
        while true; do
            ip netns exec "sparring-$name" unshare --mount --uts env TRIAL_HOST="$name" TRIAL_FOLDERS="$folders" TRIAL_MODELS="$models" \
                PATH="$root/.venv/bin:$PATH" SPARRING_HOME="$work/home" SPARRING_API_KEY="$KEY" SPARRING_DATA_ROOTS="$models" \
                SPARRING_RAY_ADDRESS="${address[data]}:6379" SPARRING_NODE_CPUS=2 SPARRING_OBJECT_STORE_BYTES=134217728 \
                RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" \
                bash -euo pipefail -c '
                    hostname "$TRIAL_HOST"
                    mkdir -p /tmp/ray
                    mount -t tmpfs tmpfs /tmp/ray
                    if [[ $TRIAL_FOLDERS != all ]]; then
                        mount -t tmpfs tmpfs "$SPARRING_HOME"
                        mkdir -p "$SPARRING_HOME/.own"
                        for folder in $TRIAL_FOLDERS; do mkdir -p "$SPARRING_HOME/.own/$folder"; mount --bind "$TRIAL_MODELS/$folder" "$SPARRING_HOME/.own/$folder"; done
                        mount --rbind "$SPARRING_HOME/.own" "$TRIAL_MODELS"
                    fi
                    exec "$@"' bash deploy/entrypoint.sh "${@:3}" >>"$work/log/$name" 2>&1 || true
            sleep 1
        done
    ) &
    loop[$name]=$!
    disown # its end is nothing to tell
}

curl() { ip netns exec sparring-api curl "$@"; }
samplers_there() {
    ip netns exec sparring-api env RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" .venv/bin/ray status --address="${address[data]}:6379" |
        grep "/$1.0 sparring_sampler"
}

failures() {
    local name next
    for name in sampler1 trainer; do
        say "the link of $name goes down"
        ip -n $lan link set "$name" down
        sleep 60
        ip -n $lan link set "$name" up
        say "the link of $name is up again"
        next=$(($(newest_version "$job") + 1))
        within 1200 "version $next, after that" has_version "$job" "$next"
    done

    [[ $(state_of "$job") == running ]] || die "the job ended before a host could go away; raise TRIAL_ROUNDS"
    say "the host sampler2 goes away for good"
    gone sampler2
}

say "the demo's world and job (minutes, where it is not there yet)"
SPARRING_HOME=$models .venv/bin/sparring demo --print-job --rounds "${TRIAL_ROUNDS:-6}" 2>"$work/log/world" |
    for_samplers "$samplers" several-hosts >"$work/job.json" || die "no world: $(tail -n 3 "$work/log/world")"
policy=$(jq -r .policy.model "$work/job.json") scorer=$(jq -r .scorer.model.model "$work/job.json")
policy=${policy#"$models/"} scorer=${scorer#"$models/"}

network
host data all ray-head data
for ((number = 1; number <= samplers; number++)); do host "sampler$number" "$policy" ray-node sampler; done
host trainer "$policy $scorer" ray-node learner scorer
host api all api
within 300 "the API answers at $URL" api /v1/jobs
within 180 "every sampler host offers its role" samplers_there "$samplers"

job=$(submit "$work/job.json")
within 900 "job $job has version 1" has_version "$job" 1

[[ -n ${TRIAL_CALM:-} ]] || failures
within 2400 "the job ended" has_ended "$job"
account "$job"
say "passed in $SECONDS s"

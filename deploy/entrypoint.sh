#!/usr/bin/env bash
# What a container of the image does:
#
#   ray-head [ROLE ...]  the cluster's first Ray node. Roles (data, sampler, scorer, learner) say what it carries; default: data
#   ray-node ROLE ...    a further Ray node with these roles (SPARRING_RAY_ADDRESS names the head)
#   api                  the REST API, on a Ray node of its own that offers nothing (SPARRING_RAY_ADDRESS names the head)
#   secrets              make what is missing of the cluster's secrets: the API key and the passwords in /secrets, Ray's token in /ray
#   anything else is run as it stands, e.g. `sparring validate job.yaml`
set -euo pipefail

fail() {
    echo "entrypoint: $1" >&2
    exit "${2:-2}"
}

# A node is reached by the others at its address on the private network.
ray_node() {
    local address
    address=$(hostname -i | cut -d' ' -f1) || fail "hostname -i gives no address; name this machine in /etc/hosts." 1
    ray start --node-ip-address="$address" --disable-usage-stats \
        --object-store-memory="${SPARRING_OBJECT_STORE_BYTES:-536870912}" "$@"
}

# A node that carries ROLES for the others: until it ends, or its Ray does.
worker_node() {
    local -a offered=()
    [[ -z ${SPARRING_NODE_CPUS:-} ]] || offered+=(--num-cpus="$SPARRING_NODE_CPUS")
    [[ -z ${SPARRING_NODE_GPUS:-} ]] || offered+=(--num-gpus="$SPARRING_NODE_GPUS")
    ray_node --block --resources="$1" "${offered[@]}" "${@:2}"
}

# ROLE ... -> Ray's custom resources, by which workers find their machines (workers/roles.py).
resources() {
    local role listed=
    for role in $*; do
        case $role in
            data | sampler | scorer | learner) listed+="${listed:+, }\"sparring_$role\": 1" ;;
            *) fail "$role is no role; a node carries one or more of data, sampler, scorer and learner." ;;
        esac
    done
    [[ -n $listed ]] || fail "a node carries one or more of the roles data, sampler, scorer and learner; name them."
    echo "{$listed}"
}

# Waits for what a sentence names until the command answers.
wait_for() {
    local seconds=${SPARRING_WAIT_SECONDS:-180} began=$SECONDS said
    echo "entrypoint: waiting for the $1"
    until said=$(timeout 30 "${@:2}" 2>&1); do
        ((SECONDS - began < seconds)) || fail "no $1 after $seconds s (SPARRING_WAIT_SECONDS): ${said##*$'\n'}" 1
        sleep 1
    done
}

# Waits for the Ray head. In no subshell is its address looked at: the end of one would not end this script.
wait_for_head() {
    wait_for "Ray head at $SPARRING_RAY_ADDRESS (SPARRING_RAY_ADDRESS)" ray health-check --address="$SPARRING_RAY_ADDRESS"
}

need_head() {
    [[ -n ${SPARRING_RAY_ADDRESS:-} ]] || fail "SPARRING_RAY_ADDRESS is not set; it names the Ray head, e.g. ray-head:6379."
}

# Without a key or a file that holds one, a key is made at first start and kept with the data.
api_key() {
    [[ -z ${SPARRING_API_KEY:-}${SPARRING_API_KEY_FILE:-} ]] || return 0
    export SPARRING_API_KEY_FILE=$SPARRING_HOME/api_key
    secret "$SPARRING_API_KEY_FILE" 077
}

secret() {
    [[ ! -s $1 ]] || return 0
    (umask "$2" && python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$1")
    echo "entrypoint: a new secret is in $1"
}

# Where SPARRING_METRICS_KEY_FILE names a file, a key that may only look is made there, for Prometheus, unless it holds one that the store knows.
metrics_key() {
    local file=${SPARRING_METRICS_KEY_FILE:-} known key answer=0
    [[ -n $file ]] || return 0
    known="import sys; from services.access.store import AccessStore; from services.settings import Settings
sys.exit(3 if AccessStore(Settings.load().store_url).find_key(open(sys.argv[1]).read().strip()) is None else 0)"
    if [[ -f $file && -s $file ]]; then
        python -c "$known" "$file" || answer=$?
        ((answer == 3)) || return 0 # it is known, or nobody could say
    fi
    if ! { : >>"$file"; } 2>/dev/null; then # before a key is made that nobody would have
        echo "entrypoint: $file (SPARRING_METRICS_KEY_FILE) cannot be written, and Prometheus has no key" >&2
        return 0
    fi
    key=$(sparring keys create prometheus --scope read 2>/dev/null) || fail "no key for Prometheus could be made" 1
    echo "$key" >"$file"
}

# A driver that loses its Ray node ends, and so does the container, which is then restarted as a whole.
api() {
    need_head
    api_key
    wait_for "job store" python -c "from services.settings import Settings; from services.jobs.store import JobStore; JobStore(Settings.load().store_url).check()"
    metrics_key
    wait_for_head
    ray_node --address="$SPARRING_RAY_ADDRESS" --num-cpus=0 --num-gpus=0
    exec sparring serve --host 0.0.0.0 --port 8700
}

case ${1:-} in
    ray-head)
        (($# > 1)) || set -- ray-head data
        offers=$(resources "${@:2}")
        worker_node "$offers" --head --port=6379 --include-dashboard=false
        ;;
    ray-node)
        offers=$(resources "${@:2}")
        need_head
        wait_for_head
        worker_node "$offers" --address="$SPARRING_RAY_ADDRESS"
        ;;
    api) api ;;
    # Readable for every service that mounts the folder; on the host it is the engine's own.
    secrets) for file in /secrets/{api_key,postgres_password,grafana_password} /ray/token; do secret "$file" 022; done ;;
    *) exec "$@" ;;
esac

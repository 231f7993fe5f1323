#!/usr/bin/env bash
# Build the CPU image and verify it: its size, its content, its user, that it serves and is healthy, that SIGTERM drains
# it, and that it reads keys from a file. Port 8000 of this machine must be free.
#
#   docker/verify.sh              with Docker: on a read-only root, as process 1
#   docker/verify.sh TOOL         without: `TOOL build TAG` builds ./Dockerfile, and `TOOL run TAG [COMMAND...]` runs the
#                                 image's command, or another, on this machine's network
set -euo pipefail
cd "$(dirname "$0")/.."

tool=${1:-}
tag=swin2sr:verify
url=http://127.0.0.1:8000
photo=app/web/sample-upscaled.webp
most_megabytes=1600
user=10001
work=$(mktemp -d)
runner=

fail() {
  tail -30 "$work/log" >&2 || true
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

if [ "$tool" ]; then
  build() { "$tool" build "$tag"; }
  inside() { "$tool" run "$tag" "$@"; }
  start() {
    "$tool" run "$tag" "$@" >"$work/log" 2>&1 &
    runner=$!
  }
  # A tool mounts nothing: the file is written inside, readable by its owner alone.
  start_with_keys() { start sh -c "umask 277; printf '$1' >/tmp/keys; SWIN2SR_API_KEYS_FILE=/tmp/keys exec swin2sr serve"; }
  # The process that serves: the youngest of those that the tool started.
  service() {
    local process=$runner child
    while child=$(pgrep -n -P "$process"); do process=$child; done
    echo "$process"
  }
  healthy() { inside python3 /opt/healthcheck.py 2>>"$work/log"; }
  user_of_service() { ps -o uid= -p "$(service)" | tr -d ' '; }
  sockets_of_service() { cat "/proc/$(service)/net/tcp"; }
  terminate() { kill -TERM "$(service)"; }
  status_at_end() { wait "$runner" && status=0 || status=$?; }
  clean() {
    if [ "$runner" ] && kill -0 "$runner" 2>/dev/null; then
      kill -KILL "$(service)"
      wait "$runner" || true
    fi
  }
else
  build() { docker build --tag "$tag" .; }
  inside() { docker run --rm --read-only --tmpfs /tmp "$tag" "$@"; }
  start() { runner=$(docker run --detach --read-only --tmpfs /tmp --publish 127.0.0.1:8000:8000 "$@" "$tag"); }
  start_with_keys() {
    printf "$1" >"$work/keys"
    chmod 0440 "$work/keys" # as the Secret of docker/kubernetes/components/secrets
    start --volume "$work/keys:/run/secrets/swin2sr/api-keys:ro" --group-add "$(id -g)" \
      --env SWIN2SR_API_KEYS_FILE=/run/secrets/swin2sr/api-keys
  }
  healthy() {
    docker logs "$runner" >"$work/log" 2>&1
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$runner")" = healthy ]
  }
  user_of_service() { docker exec "$runner" stat -c %u /proc/1; }
  sockets_of_service() { docker exec "$runner" cat /proc/1/net/tcp; }
  terminate() { docker kill --signal TERM "$runner" >/dev/null; }
  status_at_end() { status=$(docker wait "$runner"); }
  clean() { [ -z "$runner" ] || docker rm --force "$runner" >/dev/null; }
fi
trap 'clean; rm -rf "$work"' EXIT

# wait_until SECONDS WHAT COMMAND...: repeat a command until it succeeds.
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "$what"
    sleep 0.1
  done
}
status_of() { curl -s -o /dev/null -w '%{http_code}' "$@"; }
is_not_ready() { [ "$(status_of "$url/health/ready")" = 503 ]; }

build >"$work/log" 2>&1 || fail "the image cannot be built"
megabytes=$(inside sh -c 'du -sxm / 2>/dev/null; true' | cut -f1)
[ "$megabytes" -le "$most_megabytes" ] || fail "the image has $megabytes MB, more than $most_megabytes"
echo "The image has $megabytes MB (limit: $most_megabytes MB)."

[ "$(inside id -u)" = "$user" ] || fail "it does not run as user $user"
inside sh -c '! command -v cc gcc c++ g++ clang pip' || fail "it contains a compiler or an installer"
inside python3 -c '
import importlib.metadata, pathlib, torch
from model.kernels.library import load_kernel
assert torch.version.cuda is None
assert not [each.name for each in importlib.metadata.distributions() if "nvidia" in each.name or "cuda" in each.name]
assert load_kernel() is not None, "the C kernel is missing"
' 2>"$work/log" || fail "its content is wrong"
echo "It has the C kernel without a compiler, and no CUDA."

! status_of "$url" >/dev/null || fail "something listens at $url already"
start
wait_until 180 "it does not become healthy" healthy
[ "$(user_of_service)" = "$user" ] || fail "the service does not run as user $user"
grep -q ' 00000000:1F40 ' <(sockets_of_service) || fail "it does not listen on port 8000 for other machines"
echo "It is healthy, run by user $user, and listens for other machines."

ask() { curl -s --fail-with-body -H 'Content-Type: image/webp' --data-binary "@$photo" "$@"; }
ask -o "$work/upscaled.png" "$url/v1/upscale" || fail "it does not upscale"
[ "$(head -c 4 "$work/upscaled.png" | tail -c 3)" = PNG ] || fail "its response is not an image"
echo "It upscales."

# A request that is running, and one that comes after the signal; self-ensemble makes the first one eight times as long.
ask -N -H 'Accept: multipart/mixed' -o "$work/running" "$url/v1/upscale?ensemble=true" &
running=$!
wait_until 60 "the request is not computed" grep -aqs '"state":"running"' "$work/running"
terminate
wait_until 4 "it is ready after SIGTERM" is_not_ready
! grep -aq 'content-type: image/png' "$work/running" || fail "the request was over before the signal: use a larger image"
ask -o "$work/late.png" "$url/v1/upscale" || fail "it refuses requests within DRAIN_DELAY_MS"
wait "$running" || fail "the running request was lost"
grep -aq 'content-type: image/png' "$work/running" || fail "the running request got no image"
status_at_end
[ "$status" = 0 ] || fail "its exit status is $status"
echo "SIGTERM drains it: not ready at once, all requests finished, exit status 0."

clean
start_with_keys 'photos:a-key-of-the-image\n'
wait_until 180 "it does not become healthy with a key file" healthy
is_upscaled() { [ "$(ask -o /dev/null -w '%{http_code}' "$@" "$url/v1/upscale")" = 200 ]; }
is_upscaled -H 'Authorization: Bearer a-key-of-the-image' || fail "it does not accept a key of its key file"
! is_upscaled -H 'Authorization: Bearer another-key' || fail "it accepts a key that is not in its key file"
! is_upscaled || fail "it upscales without a key"
echo "It reads its keys from a mounted file."

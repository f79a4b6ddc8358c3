# shellcheck shell=sh disable=SC2034 # the scripts that source this file use the variables
# What the boot scripts share.

HERE=/opt/resnet-spot
LIVE=/run/resnet-spot      # in memory: a reboot clears it
STATE=/var/lib/resnet-spot # survives a reboot
BUCKET=${STORE#s3://}
IMDS=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
IMDS=${IMDS%/}
export HOME=/root DOCKER_CONFIG=$LIVE/docker # so that a login is not on disk
export AWS_DEFAULT_REGION="$REGION" AWS_RETRY_MODE=standard AWS_METADATA_SERVICE_NUM_ATTEMPTS=3

: "${IDENTIFY_SECONDS:=60}"     # for so long the metadata service may fail to tell run and deadline
: "${SAVE_SECONDS:=100}"        # time for a container to save after SIGTERM; the unit says the same
: "${STOP_SECONDS:=150}"        # so long before the deadline the run is stopped: 118 to save and log, 32 to leave
: "${RETRY_SECONDS:=5}"         # pause before the second try; each further pause is twice as long
: "${CRASH_SECONDS:=10}"        # pause after a crash
: "${INTERRUPTED_SECONDS:=180}" # pause after an interruption without a notice
: "${GONE_SECONDS:=600}"        # pause until AWS or the guard takes the machine
: "${CREDENTIALS_SECONDS:=120}"  # for so long a start waits for the container's credentials
: "${LEASE_SECONDS:=60}"        # pause while another trainer holds the run

aws() { timeout 30 aws --cli-connect-timeout 5 --cli-read-timeout 15 "$@"; }

log() { # WORDS…: writes a line to the journal and, in the background, to the run's log
  line=$(printf '%s' "$*" | tr '[:cntrl:]' ' ' | head -c 4000)
  printf '%s\n' "$line"
  printf '%s %s\n' "$(date +%s%3N)" "$line" >>"$LIVE/lines"
  { sleep 2 && "$HERE/ship"; } >/dev/null 2>&1 & # so that lines of the same moment are sent together
}

try() { # TIMES COMMAND…: runs the command until it succeeds, at most so many times
  times=$1 pause=$RETRY_SECONDS
  shift
  until "$@"; do
    times=$((times - 1))
    [ "$times" -gt 0 ] || return 1
    sleep "$pause"
    pause=$((pause * 2))
  done
}

imds() { # PATH: prints a document of the metadata service; returns 44 if there is none, 1 without an answer
  token=$(curl -fsS -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$IMDS/latest/api/token") &&
    answer=$(curl -sS -m 2 -w '%{http_code}' -H "X-aws-ec2-metadata-token: $token" "$IMDS/latest/meta-data/$1") ||
    return 1
  case $answer in
  *200) printf '%s\n' "${answer%200}" ;;
  *404) return 44 ;;
  *) return 1 ;;
  esac
} 2>/dev/null

set_desired_to_0() {
  aws autoscaling set-desired-capacity --auto-scaling-group-name "$GROUP" --desired-capacity 0
}

power_off() {
  log "powering off"
  timeout 15 "$HERE/ship"
  systemctl --no-block poweroff
  sleep 60
  systemctl --force --force poweroff
}

leave() { # REASON: sets the group to 0, so that no machine replaces this one, and powers off
  log "$1: scaling $GROUP to 0"
  try 3 set_desired_to_0 || log "the group $GROUP could not be scaled to 0; the guard will"
  power_off
}

make_room() { # REASON: the group starts another machine in place of this one, and the others train on
  log "$1: another machine takes over"
  power_off
}

step_aside() { # REASON: the others of the run go on without this machine, and the group wants one fewer
  log "$1"
  try 3 aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$(cat "$LIVE/instance")" \
    --should-decrement-desired-capacity >/dev/null
  power_off
}

gpu_is_lost() {
  command -v nvidia-smi && ! timeout -k 5 30 nvidia-smi
} >/dev/null 2>&1

has_cdi() { # whether Docker has the GPUs as devices of the Container Device Interface (Docker 28.2 or later tells)
  [ -n "$GPU" ] && docker info --format '{{json .}}' | grep -q '"nvidia.com/gpu=all"'
} 2>/dev/null

needs_token() { # FIRST_ARGUMENT: only the data of the hub needs it; without $data it is the recipe's own
  case ${data:-$1} in digits | s3://*) return 1 ;; esac
}

# shellcheck shell=sh disable=SC2034 # who sources it uses them
# What the boot scripts share: where things are, how long they wait, and the ways to speak and to leave.

HERE=/opt/resnet-spot
LIVE=/run/resnet-spot      # in memory
STATE=/var/lib/resnet-spot # survives a reboot
GROUP=$INSTALLATION-$KIND
BUCKET=${STORE#s3://}
IMDS=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
IMDS=${IMDS%/}
export HOME=/root DOCKER_CONFIG=$LIVE/docker # a login stays in memory
export AWS_DEFAULT_REGION="$REGION" AWS_RETRY_MODE=standard AWS_METADATA_SERVICE_NUM_ATTEMPTS=3

: "${IDENTIFY_SECONDS:=60}"     # what the metadata service has to tell run and deadline
: "${SAVE_SECONDS:=100}"        # what a container gets to save, after SIGTERM; the unit says the same
: "${STOP_SECONDS:=150}"        # before the deadline, the end begins: 110 to save, the rest to scale and power off
: "${RETRY_SECONDS:=5}"         # before the second try, doubled before each further one
: "${CRASH_SECONDS:=10}"        # before the start after a crash
: "${INTERRUPTED_SECONDS:=180}" # after an interruption that no notice explains
: "${GONE_SECONDS:=600}"        # after one that a notice does: the machine goes sooner
: "${LEASE_SECONDS:=60}"        # while another trainer holds the run

aws() { timeout 30 aws --cli-connect-timeout 5 --cli-read-timeout 15 "$@"; }

say() { # to the journal, and in the background to the run's log
  line=$(printf '%s' "$*" | tr '\n' ' ')
  echo "$line"
  printf '%s %s\n' "$(date +%s%3N)" "$line" >>"$LIVE/lines"
  { sleep 2 && "$HERE/ship"; } >/dev/null 2>&1 & # lines that come together are shipped together
}

try() { # TIMES COMMAND…: until it succeeds, or so many times
  times=$1 pause=$RETRY_SECONDS
  shift
  until "$@"; do
    times=$((times - 1))
    [ "$times" -gt 0 ] || return 1
    sleep "$pause"
    pause=$((pause * 2))
  done
}

imds() { # PATH: a document of the metadata service; 44 where it says that there is none, 1 where it says nothing
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
  say "powering off"
  timeout 15 "$HERE/ship"
  systemctl --no-block poweroff
  sleep 60
  systemctl --force --force poweroff
}

leave() { # REASON: nobody comes after this machine, so it sets the group to 0 before it goes
  say "$1: scaling $GROUP to 0"
  try 3 set_desired_to_0 || say "the group $GROUP could not be scaled to 0; the guard will"
  power_off
}

# shellcheck shell=sh
# nerdctl on macOS with the flags that an unmodified one needs there (docs/macos.md says why each).
# Put this line into ~/.zshrc or ~/.bashrc:
#
#	. /usr/local/share/applevm/applevm.sh
#
# `nerdctl run` and `nerdctl create` get them; every other command, and what has global
# flags before the command, is nerdctl's as it is. A flag that you give yourself is not added.

export NERDCTL_TOML="${NERDCTL_TOML:-/usr/local/etc/applevm/nerdctl.toml}"
export CONTAINERD_SNAPSHOTTER="${CONTAINERD_SNAPSHOTTER:-applevm}"
PATH="$PATH:/usr/local/libexec/applevm"

nerdctl() {
	case "${1-} ${2-}" in
		"run "* | "create "*)
			_applevm_command=$1
			shift 1
			;;
		"container run" | "container create")
			_applevm_command=$2
			shift 2
			;;
		*)
			command nerdctl "$@"
			return
			;;
	esac
	_applevm_given=" "
	for _applevm_arg in "$@"; do
		case "$_applevm_arg" in
			--platform | --platform=*) _applevm_given="$_applevm_given platform " ;;
			--runtime | --runtime=*) _applevm_given="$_applevm_given runtime " ;;
			--net | --net=* | --network | --network=*) _applevm_given="$_applevm_given net " ;;
			--device=applevm.dev/* | applevm.dev/*) _applevm_given="$_applevm_given device " ;;
			--) break ;;
		esac
	done
	# In front, so that they are flags of nerdctl's whatever follows.
	case "$_applevm_given" in *" device "*) ;; *) set -- --device applevm.dev/os=linux "$@" ;; esac
	case "$_applevm_given" in *" net "*) ;; *) set -- --net none --annotation dev.applevm.network=user "$@" ;; esac
	case "$_applevm_given" in *" runtime "*) ;; *) set -- --runtime io.containerd.applevm.v1 "$@" ;; esac
	case "$_applevm_given" in *" platform "*) ;; *) set -- --platform linux/@ARCH@ "$@" ;; esac
	command nerdctl "$_applevm_command" "$@"
}

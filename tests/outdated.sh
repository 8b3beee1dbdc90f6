#!/bin/sh
# Lists, for each module of the tree, the direct requirements and tools of which there
# is a newer release. Why one is held back stands in its go.mod.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
go=$("$root/tests/go.sh" --which)

# direct MODFILE prints the paths of the requirements that are not indirect.
direct() {
	awk '/^require \(/ { block = 1; next }
		/^\)/ { block = 0 }
		/\/\/ indirect/ { next }
		block && NF { print $1 }
		$1 == "require" { print $2 }' "$1"
}

# "list -u" says nothing of updates that it cannot ask for.
"$go" list -m golang.org/x/sys@latest >/dev/null

for mod in $(git ls-files --cached --others --exclude-standard go.mod '*/go.mod'); do
	wanted=$(direct "$mod")
	if grep -q '^tool' "$mod"; then
		wanted="$wanted $(cd "$(dirname "$mod")" && "$go" list -f '{{.Module.Path}}' tool)"
	fi
	# -mod=mod: a module that is a replacement has no go.sum of its own.
	behind=$(cd "$(dirname "$mod")" && echo "$wanted" | xargs -r "$go" list -mod=mod -m -u \
		-f '{{with .Update}}  {{$.Path}} {{$.Version}} -> {{.Version}}{{end}}')
	behind=$(echo "$behind" | grep . || true)
	if [ -n "$behind" ]; then
		echo "$mod is behind:"
		echo "$behind"
	fi
done

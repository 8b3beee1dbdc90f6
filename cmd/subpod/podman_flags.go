package main

const (
	refusedKeys     = "images are not encrypted or signed by this command; use skopeo"
	refusedCompress = notYet + "layers are pushed as gzip makes them"
)

// refusedOf are the flags of Podman's commands of these names that there are not here, with
// the reason; those of "run" and others are beside the commands.
var refusedOf = map[string]refused{
	"start": {"detach-keys": "-a does not take input; use \"subpod attach\"",
		"interactive/i": "-a does not take input; use \"subpod attach\"", "sig-proxy": notYet + "signals are forwarded with -a"},
	"rm":     {"depend": "containers do not depend on others"},
	"images": {"history": notYet + "see \"subpod history\""},
	"rmi":    {"no-prune": "no image without a name is removed but the one that is named"},
	"pull": {"all-tags/a": notYet + "name the tags", "authfile": refusedRun["authfile"], "cert-dir": reasonRegistry, "creds": reasonRegistry, "decryption-key": refusedRun["decryption-key"],
		"disable-content-trust": refusedRun["disable-content-trust"], "policy": notYet + "pull always asks the registry; \"run --pull\" has policies", "retry": refusedRun["retry"],
		"retry-delay": refusedRun["retry-delay"], "tls-verify": reasonRegistry},
	"push": {"authfile": refusedRun["authfile"], "cert-dir": reasonRegistry, "creds": reasonRegistry, "tls-verify": reasonRegistry, "compress": refusedCompress,
		"compression-format": refusedCompress, "compression-level": refusedCompress, "force-compression": refusedCompress, "digestfile": notYet + "\"subpod inspect\" shows the digest",
		"disable-content-trust": refusedRun["disable-content-trust"], "encrypt-layer": refusedKeys, "encryption-key": refusedKeys, "format/f": notYet + "the format is that of the image",
		"remove-signatures": refusedKeys, "retry": notYet + "repeat the command", "retry-delay": notYet + "repeat the command", "sign-by": refusedKeys, "sign-by-sq-fingerprint": refusedKeys, "sign-by-sigstore": refusedKeys,
		"sign-by-sigstore-private-key": refusedKeys, "sign-passphrase-file": refusedKeys},
	"cp": {"archive/a": "into a container, owners are the user's of the command; out of one, the files are the caller's", "overwrite": notYet + "a directory is never replaced by a file"},
	"commit": {"config": notYet + "use --change", "format/f": notYet + "the image is an OCI image", "iidfile": notYet + "the ID is what the command prints",
		"include-volumes": notYet + "\"subpod volume export\" has the content of volumes", "pause/p": notYet + "\"subpod pause\" it before", "squash/s": notYet + "the change is one layer"},
	"events": {"filter": notYet + "use grep, or -o json with jq", "format": notYet + "use -o json, or -o go-template=", "no-trunc": notYet + "-o json has whole IDs",
		"since": "events are not kept: they are shown from now on", "until": notYet + "use timeout(1)", "stream": "it is what -f says"},
	"history": {"human/H": notYet + "-o json has exact times"},
	"save":    {"compress": "it is of directories, which are not written", "uncompressed": notYet + "layers are as they are in the store"},
	"login":   {"authfile": refusedRun["authfile"], "cert-dir": reasonRegistry, "compat-auth-file": refusedRun["authfile"], "get-login": notYet + "see auth.json", "secret": notYet + "use --password-stdin", "tls-verify": reasonRegistry, "verbose/v": "the file is printed always"},
	"logout":  {"authfile": refusedRun["authfile"], "compat-auth-file": refusedRun["authfile"]},
	"unshare": {"rootless-netns": "use \"subpod nsenter\": it is in the node's network, too"},
	"inspect": {"size/s": notYet + "see \"subpod stats\""},
}

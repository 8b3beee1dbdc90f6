package main

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

const (
	refusedLatest   = notYet + "name the container; \"subpod ps -q -n 1\" prints it"
	refusedFilter   = notYet + "use \"subpod ps -q --filter\" with xargs(1)"
	refusedAllFlag  = notYet + "use \"subpod ps -aq\" with xargs(1)"
	refusedIDFile   = notYet + "use $(cat FILE)"
	refusedKeys     = "images are not encrypted or signed by this command; use skopeo"
	refusedCompress = notYet + "layers are pushed as gzip makes them"
)

// refusedOf are the flags of Podman's commands of these names that there are not here, with
// the reason; those of "run" and others are beside the commands.
var refusedOf = map[string]refused{
	"start": {"all": refusedAllFlag, "filter": refusedFilter, "latest": refusedLatest, "detach-keys": "-a does not take input; use \"subpod attach\"",
		"interactive": "-a does not take input; use \"subpod attach\"", "sig-proxy": notYet + "signals are forwarded with -a"},
	"stop":    {"cidfile": refusedIDFile, "filter": refusedFilter, "latest": refusedLatest},
	"restart": {"cidfile": refusedIDFile, "filter": refusedFilter, "latest": refusedLatest},
	"kill":    {"cidfile": refusedIDFile, "latest": refusedLatest},
	"rm":      {"depend": "containers do not depend on others", "filter": refusedFilter, "latest": refusedLatest},
	"wait": {"condition": notYet + "it waits for the end", "exit-first-match": notYet + "wait for one", "ignore": notYet + "name what there is",
		"interval": "the server says when it has ended; nothing is polled", "latest": refusedLatest, "return-first": notYet + "wait for one"},
	"pause":   {"all": refusedAllFlag, "cidfile": refusedIDFile, "filter": refusedFilter, "latest": refusedLatest},
	"unpause": {"all": refusedAllFlag, "cidfile": refusedIDFile, "filter": refusedFilter, "latest": refusedLatest},
	"images":  {"digests": notYet + "they are in -o json, and in a template as .Digest", "filter": notYet + "name the image, or use a template of --format", "history": notYet + "see \"subpod history\"", "sort": notYet + "use sort(1)"},
	"rmi":     {"no-prune": "no image without a name is removed but the one that is named"},
	"pull": {"all-tags": notYet + "name the tags", "authfile": refusedRun["authfile"], "cert-dir": reasonRegistry, "creds": reasonRegistry, "decryption-key": refusedRun["decryption-key"],
		"disable-content-trust": refusedRun["disable-content-trust"], "policy": notYet + "pull always asks the registry; \"run --pull\" has policies", "retry": refusedRun["retry"],
		"retry-delay": refusedRun["retry-delay"], "tls-verify": reasonRegistry},
	"push": {"authfile": refusedRun["authfile"], "cert-dir": reasonRegistry, "creds": reasonRegistry, "tls-verify": reasonRegistry, "compress": refusedCompress,
		"compression-format": refusedCompress, "compression-level": refusedCompress, "force-compression": refusedCompress, "digestfile": notYet + "\"subpod inspect\" shows the digest",
		"disable-content-trust": refusedRun["disable-content-trust"], "encrypt-layer": refusedKeys, "encryption-key": refusedKeys, "format": notYet + "the format is that of the image",
		"remove-signatures": refusedKeys, "retry": notYet + "repeat the command", "retry-delay": notYet + "repeat the command", "sign-by": refusedKeys, "sign-by-sigstore": refusedKeys,
		"sign-by-sigstore-private-key": refusedKeys, "sign-passphrase-file": refusedKeys},
	"cp": {"archive": "into a container, owners are the user's of the command; out of one, the files are the caller's", "overwrite": notYet + "a directory is never replaced by a file"},
	"commit": {"config": notYet + "use --change", "format": notYet + "the image is an OCI image", "iidfile": notYet + "the ID is what the command prints",
		"include-volumes": notYet + "\"subpod volume export\" has the content of volumes", "pause": notYet + "\"subpod pause\" it before", "squash": notYet + "the change is one layer"},
	"inspect": {"all": refusedAllFlag, "latest": refusedLatest, "size": notYet + "see \"subpod stats\""},
}

// runningContainers returns the IDs of the containers that run, or of all.
func runningContainers(ctx context.Context, c *client.Client, all bool) ([]string, error) {
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, x := range list {
		if all || x.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids = append(ids, x.Id)
		}
	}
	return ids, nil
}

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"
)

// pushIndex REGISTRY REPOSITORY TAG ARCHITECTURE: puts an index in the place of the tag, of
// the image that is there, and of the same one with another architecture.
func pushIndex(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: pushindex REGISTRY REPOSITORY TAG ARCHITECTURE")
	}
	repo := "http://" + args[0] + "/v2/" + args[1]
	var m map[string]any
	raw, kind := fetch(ts, repo+"/manifests/"+args[2])
	ts.Check(json.Unmarshal(raw, &m))
	config := m["config"].(map[string]any)
	var c map[string]any
	blob, _ := fetch(ts, repo+"/blobs/"+config["digest"].(string))
	ts.Check(json.Unmarshal(blob, &c))
	here := c["architecture"]
	c["architecture"] = args[3]
	blob, err := json.Marshal(c)
	ts.Check(err)
	config["digest"], config["size"] = digest.FromBytes(blob), len(blob)
	resp := send(ts, http.MethodPost, repo+"/blobs/uploads/", "", nil)
	at, err := resp.Location()
	ts.Check(err)
	q := at.Query()
	q.Set("digest", digest.FromBytes(blob).String())
	at.RawQuery = q.Encode()
	send(ts, http.MethodPut, at.String(), "application/octet-stream", blob)
	other, err := json.Marshal(m)
	ts.Check(err)
	send(ts, http.MethodPut, repo+"/manifests/"+digest.FromBytes(other).String(), kind, other)
	entry := func(raw []byte, arch any) map[string]any {
		return map[string]any{
			"mediaType": kind, "digest": digest.FromBytes(raw), "size": len(raw),
			"platform": map[string]any{"os": "linux", "architecture": arch},
		}
	}
	const index = "application/vnd.oci.image.index.v1+json"
	list, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": index, "manifests": []any{entry(other, args[3]), entry(raw, here)}})
	ts.Check(err)
	send(ts, http.MethodPut, repo+"/manifests/"+args[2], index, list)
}

func fetch(ts *testscript.TestScript, url string) (body []byte, kind string) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	ts.Check(err)
	req.Header["Accept"] = []string{"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	ts.Check(err)
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("GET %s: %s", url, resp.Status)
	}
	return body, resp.Header.Get("Content-Type")
}

func send(ts *testscript.TestScript, method, url, kind string, body []byte) *http.Response {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	ts.Check(err)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		ts.Check(fmt.Errorf("%s %s: %s %s", method, url, resp.Status, strings.TrimSpace(string(text))))
	}
	return resp
}

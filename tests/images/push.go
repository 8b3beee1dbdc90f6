package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"

	digest "github.com/opencontainers/go-digest"
)

// push puts an image into the registry at addr under the repository
// "original registry/path", which is where the tests' registries.conf looks.
// The protocol is the OCI distribution specification's.
func push(addr string, img *image) error {
	for _, name := range img.names {
		repository, tag := split(name)
		base := "http://" + addr + "/v2/" + repository
		for d, data := range img.blobs {
			if err := pushBlob(base, d, data); err != nil {
				return fmt.Errorf("blob %s: %w", d, err)
			}
		}
		for _, child := range img.children {
			if err := pushManifest(base, child.Digest.String(), child.MediaType, img.blobs[child.Digest]); err != nil {
				return err
			}
		}
		if err := pushManifest(base, tag, img.top.MediaType, img.topData); err != nil {
			return err
		}
	}
	return nil
}

func pushManifest(base, reference, mediaType string, data []byte) error {
	_, err := request(http.MethodPut, base+"/manifests/"+reference, mediaType, data, http.StatusCreated)
	return err
}

func pushBlob(base string, d digest.Digest, data []byte) error {
	started, err := request(http.MethodPost, base+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := url.Parse(started.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("upload location: %w", err)
	}
	to = started.Request.URL.ResolveReference(to)
	query := to.Query()
	query.Set("digest", d.String())
	to.RawQuery = query.Encode()
	_, err = request(http.MethodPut, to.String(), "application/octet-stream", data, http.StatusCreated)
	return err
}

func request(method, to, mediaType string, body []byte, want int) (*http.Response, error) {
	req, err := http.NewRequest(method, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
	if res.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, to, res.Status, answer)
	}
	return res, nil
}

package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// watchTime is how long the API server is asked to let a watch last.
const watchTime = 10 * time.Minute

// Node is what is read of a Node object.
type Node struct {
	Metadata struct {
		Name              string            `json:"name"`
		CreationTimestamp time.Time         `json:"creationTimestamp"`
		ResourceVersion   string            `json:"resourceVersion"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

// Follow calls f with all nodes of the cluster, the oldest first, at once and after each
// change, until the watch or f fails, or ctx ends. A watch that the API server ends in its
// time is no error. ErrForbidden.
func (c *Client) Follow(ctx context.Context, f func([]Node) error) error {
	all, version, err := c.list(ctx)
	if err != nil {
		return fmt.Errorf("list the cluster's nodes: %w", err)
	}
	if err := f(sorted(all)); err != nil {
		return err
	}
	query := url.Values{"watch": {"1"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {version},
		"timeoutSeconds": {fmt.Sprint(int(watchTime.Seconds()))}}
	ctx, cancel := context.WithTimeout(ctx, watchTime+answerTimeout) // should it not keep to that
	defer cancel()
	body, err := c.do(ctx, http.MethodGet, "/api/v1/nodes", query, nil)
	if err != nil {
		return fmt.Errorf("watch the cluster's nodes: %w", err)
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := events.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("watch the cluster's nodes: %w", err)
		}
		changed, err := apply(all, e.Type, e.Object)
		if err == nil && changed {
			err = f(sorted(all))
		}
		if err != nil {
			return err
		}
	}
}

// apply applies an event of a watch to the nodes.
func apply(all map[string]Node, kind string, object json.RawMessage) (changed bool, err error) {
	switch kind {
	case "ADDED", "MODIFIED", "DELETED":
	case "BOOKMARK":
		return false, nil
	default:
		return false, fmt.Errorf("watch the cluster's nodes: %s: %s", kind, object)
	}
	var n Node
	if err := json.Unmarshal(object, &n); err != nil {
		return false, fmt.Errorf("watch the cluster's nodes: %w", err)
	}
	if kind == "DELETED" {
		delete(all, n.Metadata.Name)
	} else {
		all[n.Metadata.Name] = n
	}
	return true, nil
}

func (c *Client) list(ctx context.Context) (map[string]Node, string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body, err := c.do(ctx, http.MethodGet, "/api/v1/nodes", nil, nil)
	if err != nil {
		return nil, "", err
	}
	defer body.Close()
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Items []Node `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&list); err != nil {
		return nil, "", err
	}
	all := map[string]Node{}
	for _, n := range list.Items {
		all[n.Metadata.Name] = n
	}
	return all, list.Metadata.ResourceVersion, nil
}

// sorted returns the nodes, the oldest first.
func sorted(all map[string]Node) []Node {
	var out []Node
	for _, n := range all {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Node) int {
		if d := a.Metadata.CreationTimestamp.Compare(b.Metadata.CreationTimestamp); d != 0 {
			return d
		}
		return strings.Compare(a.Metadata.Name, b.Metadata.Name)
	})
	return out
}

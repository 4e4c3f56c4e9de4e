// `@huggingface/tokenizers` (what it exports) behind the call that `library.py` needs: the value
// is exports -> (tokenizer.json without vocabulary and merges, these) -> {encode, idOf}: a list of
// texts -> lists of ids, and a piece -> its id or -1.
({ Tokenizer, BPE }) => {
  // The library's merging over sorted arrays instead of a text and an object for each merge.
  class Merging extends BPE {
    // `merges`: left * size + right of each pair of ids, ascending; `ranks`: which goes first.
    constructor(config, ids, merges, ranks) {
      super(config);
      Object.assign(this, { tokens_to_ids: ids, merges, ranks });
      this.unk_token_id = ids.get(config.unk_token);
    }

    add_node(queue, node) {
      const left = this.tokens_to_ids.get(node.token);
      const right = this.tokens_to_ids.get(node.next.token);
      const at = this.find(left * this.tokens_to_ids.size + right); // NaN is nowhere
      if (at < 0) return;
      node.score = this.ranks[at] + node.bias;
      queue.push(node);
    }

    find(key) {
      let [low, high] = [0, this.merges.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.merges[middle] < key) low = middle + 1;
        else high = middle;
      }
      return this.merges[low] === key ? low : -1;
    }
  }

  // `pieces`: the UTF-8 bytes of all of them; `ends`: where each ends in the text, in UTF-16 units.
  function idsOf(pieces, ends) {
    const all = new TextDecoder("utf-8", { ignoreBOM: true }).decode(pieces);
    const ids = new Map();
    let start = 0;
    for (const end of ends) {
      ids.set(all.slice(start, end), ids.size);
      start = end;
    }
    return ids;
  }

  return (json, pieces, ends, merges, ranks) => {
    const config = JSON.parse(json);
    const tokenizer = new Tokenizer(config, {});
    tokenizer.model = new Merging(config.model, idsOf(pieces, ends), merges, ranks);
    return {
      encode: (texts) => texts.map((one) => tokenizer.encode(one, { add_special_tokens: false }).ids),
      idOf: (piece) => tokenizer.model.tokens_to_ids.get(piece) ?? -1,
    };
  };
};

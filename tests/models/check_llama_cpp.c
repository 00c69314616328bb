// states MODEL logits|states|rank ID...: what llama.cpp computes of these tokens, as float32: of each
// token its logits or its last hidden state, or of all the logits of a classifier.
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char ** argv) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    int count = argc - 3, rank = !strcmp(argv[2], "rank"), states = !strcmp(argv[2], "states");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 256;
    params.n_threads = params.n_threads_batch = 2;
    params.embeddings = rank || states;
    params.pooling_type = rank ? LLAMA_POOLING_TYPE_RANK : LLAMA_POOLING_TYPE_NONE;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) return 2;
    struct llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch.token[i] = atoi(argv[3 + i]);
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (llama_decode(context, batch)) return 3;
    size_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    if (rank) {
        fwrite(llama_get_embeddings_seq(context, 0), 4, llama_model_n_cls_out(model), stdout);
    } else if (states) {
        fwrite(llama_get_embeddings(context), 4, (size_t) count * llama_model_n_embd(model), stdout);
    } else {
        fwrite(llama_get_logits(context), 4, count * vocab, stdout);
    }
    return 0;
}

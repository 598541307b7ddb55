"Small networks of the `transformers` library, built from their configurations, without trained weights."
from functools import partial
from importlib import import_module

import torch

TOKENS,IMAGE,SOUND = 'tokens','image','sound'
WIDE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
TEXT = dict(vocab_size=99, pad_token_id=1)
CAUSAL = TEXT | dict(use_cache=False)
PATCHES = WIDE | dict(image_size=32, patch_size=8)
WAVES = WIDE | dict(conv_dim=[32]*3, conv_stride=[5, 2, 2], conv_kernel=[10, 3, 3], num_feat_extract_layers=3,
                    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=32)
COUPLED = CAUSAL | dict(d_model=64)

# name: class without `Config`'s prefix, inputs, settings
READERS = {nm:(f'{cls}ForSequenceClassification', cls, TOKENS, TEXT | WIDE | dict(max_position_embeddings=64)) for nm,cls in dict(
    bert='Bert', roberta='Roberta', electra='Electra', albert='Albert', mpnet='MPNet', modernbert='ModernBert',
    deberta_v2='DebertaV2').items()}
WRITERS = {nm:(f'{cls}ForCausalLM', cls, TOKENS, CAUSAL | WIDE | dict(num_key_value_heads=2) | more) for nm,cls,more in [
    ('llama', 'Llama', {}), ('mistral', 'Mistral', {}), ('qwen2', 'Qwen2', {}), ('qwen3', 'Qwen3', dict(head_dim=16)),
    ('gemma', 'Gemma', dict(head_dim=16)), ('phi', 'Phi', {}), ('stablelm', 'StableLm', {}), ('olmo', 'Olmo', {}),
    ('mixtral', 'Mixtral', {}), ('gpt_neox', 'GPTNeoX', {})]}
SEERS = {nm:(head or f'{cls}ForImageClassification', cls, IMAGE, PATCHES) for nm,cls,head in [
    ('vit', 'ViT', ''), ('deit', 'DeiT', ''), ('beit', 'Beit', ''), ('dinov2', 'Dinov2', ''),
    ('clip_vision', 'CLIPVision', 'CLIPVisionModel'), ('siglip_vision', 'SiglipVision', 'SiglipVisionModel')]}
OTHERS = dict(
    distilbert=('DistilBertForSequenceClassification', 'DistilBert', TOKENS, TEXT | dict(dim=64, n_layers=2, n_heads=4, hidden_dim=96)),
    gpt2=('GPT2LMHeadModel', 'GPT2', TOKENS, CAUSAL | dict(n_embd=64, n_layer=2, n_head=4, n_positions=64)),
    opt=('OPTForCausalLM', 'OPT', TOKENS, CAUSAL | dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96,
                                                        word_embed_proj_dim=64)),
    bloom=('BloomForCausalLM', 'Bloom', TOKENS, CAUSAL | dict(hidden_size=64, n_layer=2, n_head=4)),
    falcon=('FalconForCausalLM', 'Falcon', TOKENS, CAUSAL | dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)),
    mamba=('MambaForCausalLM', 'Mamba', TOKENS, CAUSAL | dict(hidden_size=64, num_hidden_layers=2, state_size=8)),
    t5=('T5ForConditionalGeneration', 'T5', 'pairs', COUPLED | dict(d_kv=16, d_ff=96, num_layers=2, num_heads=4)),
    bart=('BartForConditionalGeneration', 'Bart', 'pairs', COUPLED | dict(
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96)),
    swin=('SwinForImageClassification', 'Swin', IMAGE, dict(image_size=64, patch_size=2, embed_dim=32, depths=[2, 2],
                                                           num_heads=[2, 4], window_size=4)),
    convnext=('ConvNextForImageClassification', 'ConvNext', IMAGE, dict(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1])),
    resnet=('ResNetForImageClassification', 'ResNet', IMAGE, dict(embedding_size=16, hidden_sizes=[32, 48, 64, 64], depths=[1]*4)),
    segformer=('SegformerForSemanticSegmentation', 'Segformer', IMAGE, dict(
        hidden_sizes=[16, 32, 40, 64], depths=[1]*4, num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32)),
    mobilevit=('MobileViTForImageClassification', 'MobileViT', IMAGE, dict(
        hidden_sizes=[32, 40, 48], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64], image_size=64)),
    pvt_v2=('PvtV2ForImageClassification', 'PvtV2', IMAGE, {}),
    whisper_encoder=('WhisperForAudioClassification', 'Whisper', 'spectrum', dict(
        num_mel_bins=20, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=64, max_source_positions=32, classifier_proj_size=32)),
    wav2vec2=('Wav2Vec2ForSequenceClassification', 'Wav2Vec2', SOUND, WAVES),
    hubert=('HubertForSequenceClassification', 'Hubert', SOUND, WAVES))
NETWORKS = READERS | WRITERS | SEERS | OTHERS
REAL = {'mixtral'}                          # its product of all experts is calculated, or not at all

def build(name):
    "One network, small."
    transformers = import_module('transformers')
    transformers.logging.set_verbosity_error()
    model,config,_,settings = NETWORKS[name]
    return getattr(transformers, model)(getattr(transformers, f'{config}Config')(**settings))

def inputs(name, n=2):
    "A batch that the network takes."
    side = 64 if name in OTHERS else 32
    tokens = partial(torch.randint, 3, 99)
    return {TOKENS:lambda: (tokens((n, 12)),), IMAGE:lambda: (torch.randn(n, 3, side, side),), SOUND:lambda: (torch.randn(n, 3200),),
            'spectrum':lambda: (torch.randn(n, 20, 64),),
            'pairs':lambda: (tokens((n, 12)), torch.ones(n, 12, dtype=torch.long), tokens((n, 7)))}[NETWORKS[name][2]]()

(* C4, the absorbing band: sign rule with step u, the same scores at every step, equal targets L = K T / E, any K, any
   ties, any bias. With m = m(2u) and B = m (E - 1) - (1 - 1/E): an expert with |A_k - L| <= b at one step has it at
   the next one, for b = B and for every larger b; so also for b = m (E - 1), the band as first stated. Each side of the
   band is absorbing by itself.

   Counting is done in whole numbers, on the excess E A_k - K T, of which the band is (E m - 1) (E - 1). *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zify ring.
From alflb Require Import definitions topk c3_preference_rule.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ------------------------------------------------ one step, counted in whole numbers *)
Section Trade.
Variable E : nat.
Implicit Types (a : 'I_E -> int) (s c : int) (j k : 'I_E).

(* a are loads, s their sum. *)
Definition excess s a k : int := E%:Z * a k - s.

(* k may give a token to j: from overloaded to balanced or underloaded, or from balanced to underloaded. *)
Definition gives s a k j : bool :=
  (0 < excess s a k) && (excess s a j <= 0) || (0 <= excess s a k) && (excess s a j < 0).

(* The mirror image exchanges overloaded and underloaded. *)
Definition mirrored a k : int := - a k.

Lemma excess_mirrored s a k : excess (- s) (mirrored a) k = - excess s a k.
Proof. by rewrite /excess /mirrored; ring. Qed.

Lemma gives_mirrored s a k j : gives (- s) (mirrored a) k j = gives s a j k.
Proof. by rewrite /gives !excess_mirrored; lia. Qed.

Lemma sum_excess s a : \sum_k a k = s -> \sum_k excess s a k = 0.
Proof.
by move=> sum_a; rewrite sumrB -mulr_sumr sum_a sumr_const card_ord -mulr_natl natz subrr.
Qed.

(* Someone is underloaded where someone is overloaded. *)
Lemma someone_under s a k : \sum_k a k = s -> 0 < excess s a k -> exists j, excess s a j < 0.
Proof.
move=> /sum_excess sum_e over; apply/existsP; case: existsP => // none.
have ge0 j : true -> 0 <= excess s a j by rewrite leNgt; case: ltP => // h; case: none; exists j.
by move: over; rewrite (psumr_eq0P ge0 sum_e) // ltxx.
Qed.

(* A deficit is as large as any one excess where nobody else is underloaded. *)
Lemma lone_deficit s a j k : \sum_k a k = s -> j != k -> (forall i, i != j -> 0 <= excess s a i) ->
  excess s a k <= - excess s a j.
Proof.
move=> /sum_excess + jk ge0; rewrite (bigD1 j) //= (bigD1 k) /=; last by rewrite eq_sym.
set rest := \sum_(i | _) _; have : 0 <= rest by apply: sumr_ge0 => i /andP[/ge0].
by move=> ?; lia.
Qed.

(* The only underloaded expert lacks at least 1 - 1/E of a token. *)
Lemma lone_deficit_ge s a j : \sum_k a k = s -> excess s a j < 0 ->
  (forall i, i != j -> 0 <= excess s a i) -> E%:Z - 1 <= - excess s a j.
Proof.
move=> sum_a under ge0; have E0 : (0 < E)%N := leq_ltn_trans (leq0n j) (ltn_ord j).
have [/existsP[i /andP[ij /eqP ei]]|] := boolP [exists i, (i != j) && (excess s a i == 0)].
  have lt_a : a j < a i by rewrite -(ltr_pmul2l (_ : 0 < E%:Z)) //; move: under ei; rewrite /excess; lia.
  have : E%:Z * 1 <= E%:Z * (a i - a j) by rewrite ler_pmul2l //; lia.
  by move: ei; rewrite /excess mulrBr; lia.
rewrite negb_exists => /forallP ne0.
have : \sum_(i | i != j) (1 : int) <= \sum_(i | i != j) excess s a i.
  by apply: ler_sum => i ij; have := ge0 i ij; have := ne0 i; rewrite ij; lia.
have := sum_excess sum_a; rewrite (bigD1 j) //= sumr_const.
have -> : #|[pred i : 'I_E | i != j]| = E.-1 by rewrite (cardC1 j) card_ord.
by rewrite natz; lia.
Qed.

Lemma card_without (P : pred 'I_E) k : ~~ P k -> (#|[set j | P j]| <= E - 1)%N.
Proof.
move=> nPk; have /subset_leq_card : [set j | P j] \subset [set~ k].
  by apply/subsetP=> j; rewrite !inE => Pj; apply: contraNneq nPk => <-.
by rewrite cardsC1 card_ord subn1.
Qed.

Lemma card_without_two (P : pred 'I_E) j k : j != k -> ~~ P j -> ~~ P k ->
  (#|[set i | P i]| <= E - 2)%N.
Proof.
move=> jk nPj nPk; have /subset_leq_card : [set i | P i] \subset ~: [set j; k].
  by apply/subsetP=> i; rewrite !inE => Pi; apply/norP; split; apply: contraTneq Pi => ->.
by have := cardsC [set j; k]; rewrite cards2 jk card_ord => /= h1 h2; lia.
Qed.

Variable m : nat.
Hypothesis m0 : (0 < m)%N.

(* From a to a', at most m tokens went from any expert to any other, all of them where they may. *)
Definition trade s a a' : Prop := forall k, exists gained lost : nat,
  [/\ a' k = a k + gained%:Z - lost%:Z, (gained <= m * #|[set j | gives s a j k]|)%N
    & (lost <= m * #|[set j | gives s a k j]|)%N].

Lemma trade_mirrored s a a' : trade s a a' -> trade (- s) (mirrored a) (mirrored a').
Proof.
move=> t k; have [gained [lost [a'k g l]]] := t k; exists lost, gained; split.
- by rewrite /mirrored a'k; ring.
- by under eq_finset do rewrite gives_mirrored.
- by under eq_finset do rewrite gives_mirrored.
Qed.

(* E times the sharp band. *)
Definition whole_band : int := (E%:Z * m%:Z - 1) * (E%:Z - 1).

(* An expert whose excess is at most c does not exceed c afterwards, if c is at least the band. *)
Lemma band_above s a a' c k : \sum_k a k = s -> trade s a a' -> whole_band <= c ->
  excess s a k <= c -> excess s a' k <= c.
Proof.
move=> sum_a /(_ k)[gained [lost [a'k g _]]] bc ek.
have E0 : (0 < E)%N := leq_ltn_trans (leq0n k) (ltn_ord k).
have step : excess s a' k <= excess s a k + E%:Z * gained%:Z.
  by rewrite /excess a'k; nia.
apply: le_trans step _; have [over|under|balanced] := ltgtP 0 (excess s a k).
- have none : [set j | gives s a j k] = set0 by apply/setP=> j; rewrite !inE /gives; lia.
  by move: g; rewrite none cards0; lia.
- have nk : ~~ gives s a k k by rewrite /gives; lia.
  have [/existsP[j /andP[jk uj]]|alone] := boolP [exists j, (j != k) && (excess s a j < 0)].
    have nj : ~~ gives s a j k by rewrite /gives; lia.
    have few := card_without_two (P := gives s a ^~ k) jk nj nk.
    by apply: le_trans bc; rewrite /whole_band; nia.
  have : E%:Z - 1 <= - excess s a k.
    apply: (lone_deficit_ge sum_a) => // j jk; rewrite leNgt; apply: contraNN alone => uj.
    by apply/existsP; exists j; rewrite jk.
  have few := card_without (P := gives s a ^~ k) nk; move=> ?; apply: le_trans bc; rewrite /whole_band; nia.
have [none|[j]] := set_0Vmem [set j | gives s a j k]; first by move: g; rewrite none cards0; lia.
rewrite inE => jk; have oj : 0 < excess s a j by move: jk; rewrite /gives; lia.
have [i ui] := someone_under sum_a oj.
have ik : i != k by apply: contraTneq ui => ->; rewrite -balanced ltxx.
have ni : ~~ gives s a i k by rewrite /gives; lia.
have nk : ~~ gives s a k k by rewrite /gives; lia.
have few := card_without_two (P := gives s a ^~ k) ik ni nk.
by apply: le_trans bc; rewrite /whole_band; nia.
Qed.

(* The mirror image. *)
Lemma band_below s a a' c k : \sum_k a k = s -> trade s a a' -> whole_band <= c ->
  - c <= excess s a k -> - c <= excess s a' k.
Proof.
move=> sum_a t bc; rewrite ![- c <= _]ler_oppl -!excess_mirrored.
by apply: band_above (trade_mirrored t) bc; rewrite sumrN sum_a.
Qed.

End Trade.

(* --------------------------------------------------- a sign step is such a trade *)
Section SignStep.
Variables (R : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (u : R).
Hypotheses (KE : (K <= E)%N) (u0 : 0 < u).
Implicit Types (p q : 'I_E -> R) (i : 'I_T) (j k : 'I_E).
Local Notation A := (load K scores).
Local Notation picks := (picks K scores).
Local Notation swaps := (swaps K scores).
Local Notation L := (even R T K).
Local Notation step := (sign_step K scores L u).
Local Notation m := (multiplicity scores (2%:R * u)).

(* The loads and their sum, as integers. *)
Definition loads p k : int := (A p k)%:Z.
Definition total : int := (K * T)%N%:Z.

Lemma num_experts_gt0 k : (0 < E)%N. Proof. exact: leq_ltn_trans (leq0n k) (ltn_ord k). Qed.

Lemma multiplicity_gt0 : (0 < m)%N. Proof. by rewrite /multiplicity leq_max. Qed.

Lemma sum_loads_int p : \sum_k loads p k = total.
Proof. by rewrite /total -(sum_loads scores KE p) (big_morph _ PoszD (erefl _)). Qed.

Lemma excess_deviation p k : (excess total (loads p) k)%:~R = E%:R * ((A p k)%:R - L k) :> R.
Proof.
have E0 : E%:R != 0 :> R by rewrite pnatr_eq0 -lt0n (num_experts_gt0 k).
by rewrite /excess /even /total rmorphB rmorphM /= -!pmulrn mulrBr mulrCA divff // mulr1.
Qed.

Lemma sg_deviation p k : Num.sg (L k - (A p k)%:R) = (Num.sg (- excess total (loads p) k))%:~R.
Proof.
have E0 : 0 < E%:R :> R by rewrite ltr0n (num_experts_gt0 k).
rewrite -[LHS]mul1r -{1}(gtr0_sg E0) -sgrM -opprB mulrN -excess_deviation -rmorphN.
by rewrite sgrEz sgz_int [in RHS]sgrEz intz.
Qed.

Lemma sg_gives p k j : (Num.sg (L k - (A p k)%:R) < Num.sg (L j - (A p j)%:R)) =
  gives total (loads p) k j.
Proof. by rewrite !sg_deviation ltr_int sg_lt oppr_lt0 oppr_ge0 oppr_le0 oppr_gt0. Qed.

(* m(2u) counts every window of length 2u, wherever it starts. *)
Lemma card_window a k j w : k != j -> (#|window scores a w k j| <= multiplicity scores w)%N.
Proof.
move=> kj; rewrite leq_max; have [->|[i0 i0W]] := set_0Vmem (window scores a w k j).
  by rewrite cards0.
apply/orP; right; set W := window scores a w k j in i0W *.
case: (@Order.TotalTheory.arg_minP _ _ _ i0 (mem W) (crossing scores k j) i0W) => i iW first_i.
apply: (@leq_trans #|window scores (crossing scores k j i) w k j|).
  apply/subset_leq_card/subsetP=> i' i'W; rewrite inE first_i //=.
  have {iW} iW : i \in W by []; move: iW i'W; rewrite !inE => /andP[ai _] /andP[_ i'a].
  by rewrite (le_trans i'a) // ler_add2r.
apply: leq_trans (leq_bigmax (F := fun k => \max_(j | k != j) \max_i #|window scores (crossing scores k j i) w k j|) k).
apply: leq_trans (leq_bigmax_cond (F := fun j => \max_i #|window scores (crossing scores k j i) w k j|) j kj).
exact: (leq_bigmax (F := fun i => #|window scores (crossing scores k j i) w k j|) i).
Qed.

Definition lost p q k := [set i | (k \in picks p i) && (k \notin picks q i)].

Lemma load_lost p q k : (A q k + #|lost p q k| = A p k + #|lost q p k|)%N.
Proof.
pose holders r := [set i | k \in picks r i].
have lostE r1 r2 : lost r1 r2 k = holders r1 :\: holders r2 by apply/setP=> i; rewrite !inE andbC.
rewrite !lostE /load -/(holders p) -/(holders q).
rewrite -(cardsID (holders q) (holders p)) -(cardsID (holders p) (holders q)).
by rewrite setIC; lia.
Qed.

(* Every token that drops k picks up some j for it. *)
Lemma lost_swaps p q i k : i \in lost p q k -> exists j, swaps p q i k j.
Proof.
rewrite inE => /andP[kp kq].
have : (0 < #|picks q i :\: picks p i|)%N.
  suff -> : #|picks q i :\: picks p i| = #|picks p i :\: picks q i|.
    by apply/card_gt0P; exists k; rewrite inE kp kq.
  apply: (@addnI #|picks q i :&: picks p i|).
  by rewrite cardsID setIC cardsID !card_topk.
case/card_gt0P=> j; rewrite inE => /andP[jp jq].
by exists j; rewrite /swaps kp kq jp jq.
Qed.

Lemma swapsC p q i k j : swaps p q i k j = swaps q p i j k.
Proof. by rewrite /swaps; do !case: (_ \in _). Qed.

(* A token that swaps k for j has its crossing value between the two bias differences, *)
Lemma swaps_between p q i k j : swaps p q i k j -> p j - p k <= crossing scores k j i <= q j - q k.
Proof.
case/and4P=> kp kq jp jq.
have := beats_le (topk_beats kp jp); have := beats_le (topk_beats jq kq).
rewrite /biased /crossing => h2 h1; apply/andP; split.
  by rewrite ler_subr_addr addrAC ler_subl_addr addrC [leRHS]addrC [p k + _]addrC.
by rewrite ler_subl_addr addrAC ler_subr_addr [leRHS]addrC.
Qed.

(* which a step moves by at most 2u, whatever the targets. *)
Lemma swaps_window M p i k j : swaps p (sign_step K scores M u p) i k j ->
  i \in window scores (p j - p k) (2%:R * u) k j.
Proof.
move=> /swaps_between /andP[lo hi]; rewrite inE lo /=; apply: le_trans hi _; rewrite /sign_step.
set x := Num.sg _; set y := Num.sg _.
have -> : p j + u * x - (p k + u * y) = p j - p k + u * (x - y) by ring.
rewrite ler_add2l mulrC ler_pmul2r // (_ : 2%:R = 1 - -1); last by rewrite opprK.
by apply: ler_sub; [case/andP: (sg_bounds (M j - (A p j)%:R)) | case/andP: (sg_bounds (M k - (A p k)%:R))].
Qed.

(* Tokens counted through the experts they went to. *)
Lemma card_cover (S : {set 'I_T}) (J : {set 'I_E}) (W : 'I_E -> {set 'I_T}) n :
  (forall i, i \in S -> exists2 j, j \in J & i \in W j) -> (forall j, j \in J -> #|W j| <= n)%N ->
  (#|S| <= n * #|J|)%N.
Proof.
move=> SW Wn; apply: (@leq_trans #|\bigcup_(j in J) W j|).
  by apply/subset_leq_card/subsetP=> i /SW[j jJ iW]; apply/bigcupP; exists j.
apply: (@leq_trans (\sum_(j in J) #|W j|)).
  elim/big_rec2: _ => [|j x C _ le_x]; first by rewrite cards0.
  by rewrite (leq_trans (leq_card_setU _ _)) // leq_add2l.
by rewrite mulnC -sum_nat_const; apply: leq_sum.
Qed.

(* At most m tokens go from k to each expert with a larger step, and come to k from each one with a smaller step. *)
Lemma lost_le M p k : (#|lost p (sign_step K scores M u p) k| <=
  m * #|[set j | (Num.sg (M k - (A p k)%:R) < Num.sg (M j - (A p j)%:R))%R]|)%N.
Proof.
apply: (card_cover (W := fun j => window scores (p j - p k) (2%:R * u) k j)) => [i|j].
  case/lost_swaps=> j sw; exists j; last exact: swaps_window sw.
  by rewrite inE; apply: sign_preference sw.
by rewrite inE => kj; apply: card_window; apply: contraTneq kj => ->; rewrite ltxx.
Qed.

Lemma gained_le M p k : (#|lost (sign_step K scores M u p) p k| <=
  m * #|[set j | (Num.sg (M j - (A p j)%:R) < Num.sg (M k - (A p k)%:R))%R]|)%N.
Proof.
apply: (card_cover (W := fun j => window scores (p k - p j) (2%:R * u) j k)) => [i|j].
  case/lost_swaps=> j; rewrite swapsC => sw; exists j; last exact: swaps_window sw.
  by rewrite inE; apply: sign_preference sw.
by rewrite inE => jk; apply: card_window; apply: contraTneq jk => ->; rewrite ltxx.
Qed.

Lemma sign_step_trade p : trade m total (loads p) (loads (step p)).
Proof.
move=> k; exists #|lost (step p) p k|, #|lost p (step p) k|; split.
- by have := load_lost p (step p) k; rewrite /loads; lia.
- by apply: leq_trans (gained_le L p k) _; under eq_finset do rewrite sg_gives.
- by apply: leq_trans (lost_le L p k) _; under eq_finset do rewrite sg_gives.
Qed.

Lemma whole_band_sharp k : (whole_band E m)%:~R = E%:R * sharp_band R m E.
Proof.
have E0 : E%:R != 0 :> R by rewrite pnatr_eq0 -lt0n (num_experts_gt0 k).
by rewrite /whole_band /sharp_band rmorphM /= !rmorphB /= rmorphM /= -!pmulrn; field.
Qed.

(* ------------------------------------------------------------------------ C4 *)
Theorem absorbing_above p k b : sharp_band R m E <= b ->
  (A p k)%:R - L k <= b -> (A (step p) k)%:R - L k <= b.
Proof.
have E0 : 0 < E%:R :> R by rewrite ltr0n (num_experts_gt0 k).
move=> Bb; rewrite -!(ler_pmul2l E0 _ b) -!excess_deviation => ek.
pose c := Num.max (whole_band E m) (excess total (loads p) k).
have : excess total (loads (step p)) k <= c.
  apply: (band_above multiplicity_gt0 (sum_loads_int p) (sign_step_trade p)); last by rewrite le_maxr lexx orbT.
  by rewrite le_maxr lexx.
rewrite -(ler_int R) => /le_trans; apply; rewrite /c; case: (leP (whole_band E m)) => // _.
by rewrite (whole_band_sharp k) ler_pmul2l.
Qed.

Theorem absorbing_below p k b : sharp_band R m E <= b ->
  - b <= (A p k)%:R - L k -> - b <= (A (step p) k)%:R - L k.
Proof.
have E0 : 0 < E%:R :> R by rewrite ltr0n (num_experts_gt0 k).
move=> Bb; rewrite -!(ler_pmul2l E0 (- b)) -!excess_deviation => ek.
pose c := Num.max (whole_band E m) (- excess total (loads p) k).
have : - c <= excess total (loads (step p)) k.
  apply: (band_below multiplicity_gt0 (sum_loads_int p) (sign_step_trade p)).
    by rewrite le_maxr lexx.
  by rewrite ler_oppl le_maxr lexx orbT.
rewrite -(ler_int R); apply: le_trans; rewrite mulrN mulrNz ler_opp2 /c.
case: (leP (whole_band E m)) => _; first by rewrite mulrNz ler_oppl -mulrN.
by rewrite (whole_band_sharp k) ler_pmul2l.
Qed.

Theorem absorbing_band p k b : sharp_band R m E <= b ->
  `|(A p k)%:R - L k| <= b -> `|(A (step p) k)%:R - L k| <= b.
Proof.
move=> Bb; rewrite !ler_norml => /andP[lo hi].
by rewrite (absorbing_below Bb lo) (absorbing_above Bb hi).
Qed.

Corollary absorbing_band_forever p k b n : sharp_band R m E <= b ->
  `|(A p k)%:R - L k| <= b -> `|(A (iter n step p) k)%:R - L k| <= b.
Proof. by move=> Bb inside; elim: n => //= n; apply: absorbing_band. Qed.

Corollary absorbing_band_as_stated p k n : `|(A p k)%:R - L k| <= m%:R * (E%:R - 1) ->
  `|(A (iter n step p) k)%:R - L k| <= m%:R * (E%:R - 1).
Proof.
apply: absorbing_band_forever; rewrite /sharp_band ler_subl_addr ler_addl subr_ge0.
by rewrite invf_le1 ?ltr0n ?ler1n (num_experts_gt0 k).
Qed.

End SignStep.
